"""A model at rest: signature, manifest, bundle, store, and the places that models come from."""
