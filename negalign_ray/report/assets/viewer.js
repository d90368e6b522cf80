// The viewer of samples. A covered text is not in the document at all until its reader asks for it.

const PAGE = 20, MAX_ROWS = 6, CHARS_A_ROW = 70;
const KINDS = { evaluation: "Before and after", training: "Training" };
const ROLES = ["before", "after", "answer", "negative", "positive", "sample"];
const ROLE_NAMES = { negative: "human negative", positive: "human positive", sample: "own sample" };
const ORDER_NAMES = { given: "as given", fall: "score fell most", rise: "score rose most", high: "highest score" };

async function unpack(element) {
  const bytes = Uint8Array.from(atob(element.textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).json();
}

class Viewer {
  constructor(form, content) {
    this.form = form;
    Object.assign(this, content);
    this.items.forEach((item, index) => { item.number = index + 1; });
    this.list = document.getElementById("items");
    this.more = document.getElementById("more");
    this.count = form.querySelector(".count");
    this.opened = new Set();
    this.offerKinds();
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", (event) => {
      if (event.target.name === "kind") this.offerFilters();
      if (event.target.name === "open") this.opened.clear();
      this.refresh();
    });
    this.more.addEventListener("click", () => this.showMore(true));
    this.offerFilters();
    this.refresh();
  }

  offerKinds() {
    const kinds = Object.keys(KINDS).filter((kind) => this.items.some((item) => item.kind === kind));
    const place = this.form.querySelector(".kind");
    for (const kind of kinds) {
      const input = make("input", { type: "radio", name: "kind", value: kind, checked: kind === kinds[0] });
      place.append(make("label", {}, input, make("span", {}, KINDS[kind])));
    }
  }

  // Only what tells the samples of this kind apart is offered.
  offerFilters() {
    const kind = this.form.elements.kind.value;
    const items = this.items.filter((item) => item.kind === kind);
    const answers = items.flatMap((item) => item.answers);
    const unique = (values) => [...new Set(values)];
    const heads = unique(answers.flatMap((answer) => Object.keys(answer.scores ?? {}))).sort();
    const behaviours = unique(items.map((item) => item.behaviour ?? "")).sort();
    const roles = this.form.querySelector(".roles div");
    roles.replaceChildren();
    const present = new Set(answers.map((answer) => answer.role));
    for (const role of ROLES.filter((name) => present.has(name))) {
      const input = make("input", { type: "checkbox", name: "role", value: role, checked: true });
      const swatch = make("span", { class: `swatch tone-${role}`, "aria-hidden": "true" });
      roles.append(make("label", { class: "check" }, input, swatch, ROLE_NAMES[role] ?? role));
    }
    this.options("behaviour", [["", "all"], ...behaviours.map((name) => [`=${name}`, name || "(none)"])], behaviours.length > 1);
    this.options("run", [["", "all"], ...this.runs.map((name, index) => [String(index), name])], this.runs.length > 1);
    this.options("head", heads.map((name) => [name, name]), heads.length > 0);
    const orders = Object.keys(ORDERS).filter((order) => order === "given" || (heads.length && (order === "high" || kind === "evaluation")));
    this.options("order", orders.map((order) => [order, ORDER_NAMES[order]]), orders.length > 1);
    for (const name of ["least", "most"]) {
      this.form.elements[name].value = "";
      this.form.elements[name].closest("label").hidden = heads.length === 0;
    }
  }

  options(name, pairs, isOffered) {
    const select = this.form.elements[name];
    select.replaceChildren(...pairs.map(([value, text]) => make("option", { value }, text)));
    select.closest("label").hidden = !isOffered;
  }

  refresh() {
    const fields = this.form.elements;
    const number = (name) => (fields[name].value === "" ? null : Number(fields[name].value));
    this.wanted = {
      kind: fields.kind.value,
      roles: new Set([...this.form.querySelectorAll("[name=role]:checked")].map((input) => input.value)),
      behaviour: fields.behaviour.value,
      run: fields.run.value,
      head: fields.head.value,
      least: number("least"),
      most: number("most"),
      order: fields.order.value,
      query: fields.query.value.trim().toLowerCase(),
    };
    this.found = chosen(this.items, this.wanted);
    const all = this.items.filter((item) => item.kind === this.wanted.kind).length;
    this.count.textContent = this.found.length === all ? `${all} prompts` : `${this.found.length} of ${all} prompts`;
    this.list.replaceChildren();
    this.showMore(false);
  }

  showMore(isAsked) {
    const from = this.list.children.length;
    this.list.append(...this.found.slice(from, from + PAGE).map((item) => this.element(item)));
    const left = this.found.length - this.list.children.length;
    this.more.hidden = left === 0;
    this.more.textContent = `Show ${Math.min(left, PAGE)} more of ${left}`;
    if (isAsked) this.list.children[from]?.querySelector("button").focus();
  }

  isOpen(item) {
    return this.form.elements.open.checked !== this.opened.has(item);  // `opened` holds the exceptions
  }

  element(item) {
    const isOpen = this.isOpen(item);
    const toggle = () => {
      if (this.opened.has(item)) this.opened.delete(item); else this.opened.add(item);
      const fresh = this.element(item);
      place.replaceWith(fresh);
      fresh.querySelector("button").focus();
    };
    const button = make("button", { type: "button", class: "button", "aria-expanded": String(isOpen), "aria-label": `${isOpen ? "Cover" : "Show"} the texts of prompt ${item.number}` }, isOpen ? "Cover" : "Show");
    button.addEventListener("click", toggle);
    const run = item.run !== undefined && this.runs.length > 1 ? make("span", { class: `run-name tone-${(item.run % 8) + 1}` }, this.runs[item.run]) : null;
    const top = make(
      "div", { class: "item-top" }, make("span", {}, `#${item.number}`), run,
      item.behaviour ? make("span", { class: "tag" }, item.behaviour) : null,
      item.step !== undefined ? make("span", {}, `step ${item.step}`) : null, button,
    );
    const answers = visible(item, this.wanted).map((answer) => this.answer(answer, isOpen, toggle));
    const place = make("li", { class: "item" }, top, make("div", { class: "ask" }, make("span", { class: "answer-top" }, "prompt"), this.text(item.prompt, isOpen, toggle, "Prompt")), make("div", { class: "answers" }, ...answers));
    return place;
  }

  answer(answer, isOpen, toggle) {
    const name = ROLE_NAMES[answer.role] ?? answer.role;
    const of = answer.run !== undefined && this.runs.length > 1 && answer.role !== "before" ? `${name}, ${this.runs[answer.run]}` : name;
    const scores = Object.entries(answer.scores ?? {}).map(([head, score]) => this.score(head, score));
    const isFound = this.wanted.query !== "" && finds(answer.text, this.wanted.query);
    const top = make(
      "div", { class: "answer-top" }, make("b", {}, of), ...scores,
      isFound && !isOpen ? make("span", { class: "hit-text" }, "found here") : null,
      answer.about ? make("span", {}, answer.about) : null,
    );
    return make("div", { class: `answer tone-${answer.role}` }, top, this.text(answer.text, isOpen, toggle, of));
  }

  // Marked where the score is on the wrong side of the head's threshold.
  score(head, score) {
    const { direction, threshold } = this.heads[head] ?? {};
    const isHit = direction === "harm" ? score > threshold : direction === "help" && score < threshold;
    return make("span", { class: isHit ? "score hit" : "score", title: isHit ? `beyond the threshold ${threshold}` : null }, `${isHit ? "▲ " : ""}${head} ${shown(score)}`);
  }

  text(text, isOpen, toggle, name) {
    if (isOpen) return make("div", { class: "text" }, ...this.marked(text));
    const rows = Math.max(1, Math.min(MAX_ROWS, Math.ceil(text.length / CHARS_A_ROW)));
    const cover = make("button", { type: "button", class: "cover", style: `--rows:${rows}`, tabindex: "-1", "aria-label": `${name}, ${text.length} characters, covered` });
    cover.addEventListener("click", toggle);
    return cover;
  }

  // The text with every hit of the search marked.
  marked(text) {
    const { query } = this.wanted;
    if (query === "") return [text || "(empty)"];
    const parts = [], lower = text.toLowerCase();
    let from = 0;
    for (let at = lower.indexOf(query); at >= 0; at = lower.indexOf(query, from)) {
      parts.push(text.slice(from, at), make("mark", {}, text.slice(at, at + query.length)));
      from = at + query.length;
    }
    return [...parts, text.slice(from)];
  }
}
