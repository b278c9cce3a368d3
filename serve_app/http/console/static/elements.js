// Small parts of pages, made of texts: a text goes into the page as text, never as HTML.

export const SHOWN_ROWS = 5;

export function element(name, text = "", kind = "") {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

export function bidirectional(text) {
  const made = element("bdi", text);
  made.dir = "auto";
  return made;
}

export function row(...cells) {
  const made = element("tr");
  made.append(...cells);
  return made;
}

export function svg(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// The first records of CSV text; quoted cells may hold separators, quotes and line ends.
export function records(text) {
  const found = [];
  let cells = [];
  for (const match of text.replace(/^\uFEFF/, "").matchAll(/(?:"((?:[^"]|"")*)"|([^,\r\n]*))(,|\r?\n|\r|$)/g)) {
    cells.push(match[1] === undefined ? match[2] : match[1].replaceAll('""', '"'));
    if (match[3] === ",") continue;
    if (cells.length > 1 || cells[0] !== "") found.push(cells);
    cells = [];
    if (found.length > SHOWN_ROWS) break;
  }
  return found;
}

export function preview(rows, title) {
  const region = element("div", "", "scroll");
  region.tabIndex = 0;
  region.setAttribute("role", "group");
  region.setAttribute("aria-label", title);
  const view = element("table");
  view.append(element("caption", title));
  rows.slice(0, SHOWN_ROWS + 1).forEach((cells, at) => {
    view.append(row(...cells.map((text) => {
      const cell = element(at ? "td" : "th");
      if (!at) cell.scope = "col";
      cell.append(bidirectional(text));
      return cell;
    })));
  });
  region.append(view);
  return region;
}
