// The actions: serve another version, after a question. The page has buttons only when the server says that the key may use them.

const byId = (id) => document.getElementById(id);

export function install({ ask, problemOf, say, show }) {
  const dialog = byId("confirm");
  let wanted = null; // what the question is about

  byId("view").addEventListener("click", (event) => {
    const button = event.target.closest("[data-move]");
    if (!button) return;
    const back = button.dataset.move === "back";
    const version = back ? button.dataset.to : button.dataset.move;
    const served = byId("versions").dataset.served;
    wanted = { path: back ? "ui/rollback" : "ui/promote", body: { ...(back ? {} : { version }), ...(served ? { served } : {}) } };
    byId("confirm-title").textContent = back ? `Roll back to version ${version}?` : `Serve version ${version}?`;
    byId("confirm-text").textContent = `${served ? `Version ${served} is served now. ` : ""}Every replica changes to version ${version} within seconds.`;
    byId("confirm-yes").textContent = back ? `Roll back to version ${version}` : `Serve version ${version}`;
    dialog.showModal(); // the browser keeps the focus inside, begins with Cancel, and closes it with Escape
  });

  byId("confirm-no").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", keepFocus);

  byId("confirm-yes").addEventListener("click", async () => {
    const { path, body } = wanted;
    dialog.close();
    say("The store is changed …");
    try {
      const headers = { "Content-Type": "application/json" };
      const response = await ask(path, { method: "POST", body: JSON.stringify(body), headers }, [401]);
      if (!response.ok) throw new Error(await problemOf(response));
      const { version, notes } = await response.json();
      say([`Version ${version} is served from now on; the replicas change to it within seconds.`, ...notes].join(" Note: "));
    } catch (error) {
      say(`The served version was not changed: ${error.message}`);
    }
    await show().catch((error) => say(`The page could not be refreshed: ${error.message}`));
    keepFocus();
  });
}

// The button may be gone: its version is served now, or a refresh replaced the table.
function keepFocus() {
  if (document.activeElement === document.body) byId("versions-region")?.focus();
}
