"use strict";
// tables sort by a click on a head, and filter by words
const value = (row, column) => row.cells[column].textContent;
const compare = (first, second, numeric) => {
  if (!numeric) return first.localeCompare(second, "en", { numeric: true });
  const [one, two] = [first, second].map((text) => (text === "not finite" ? Infinity : Number(text)));
  // two that are not finite have no difference
  return one === two ? 0 : one - two;
};
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  table.tHead.addEventListener("click", (event) => {
    const head = event.target.closest("th");
    if (!head) return;
    const falling = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const numeric = head.classList.contains("n");
    const sign = falling ? -1 : 1;
    const rows = [...body.rows].sort((one, two) => {
      const [first, second] = [value(one, head.cellIndex), value(two, head.cellIndex)];
      // what is missing comes last, whichever way
      if (first === "-" || second === "-") return (first === "-") - (second === "-");
      return sign * compare(first, second, numeric);
    });
    body.append(...rows);
  });
}
for (const input of document.querySelectorAll("input[type=search]")) {
  const body = document.getElementById(input.getAttribute("aria-controls")).tBodies[0];
  const output = input.closest("p").querySelector("output");
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += row.hidden ? 0 : 1;
    }
    output.textContent = `${shown} of ${body.rows.length} lines`;
  });
}
// the data as plain JSON, where the browser can unpack it
if ("DecompressionStream" in self) {
  for (const link of document.querySelectorAll("a.data")) {
    const plain = document.createElement("button");
    plain.type = "button";
    plain.textContent = link.download.replace(/\.gz$/, "");
    plain.addEventListener("click", async () => {
      const packed = Uint8Array.from(atob(link.href.split(",")[1]), (letter) => letter.charCodeAt(0));
      const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
      const target = document.createElement("a");
      target.href = URL.createObjectURL(await new Response(stream).blob());
      target.download = plain.textContent;
      target.click();
    });
    link.after(" ", plain);
  }
}
