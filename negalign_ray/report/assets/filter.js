// Which samples are shown, and in which order. Pure: no elements here.

// Answers of the item whose role is wanted.
const visible = (item, wanted) => item.answers.filter((answer) => wanted.roles.has(answer.role));

function holds(item, wanted) {
  if (item.kind !== wanted.kind) return false;
  if (wanted.behaviour !== "" && (item.behaviour ?? "") !== wanted.behaviour.slice(1)) return false;
  const isOfRun = (answer) => wanted.run === "" || (answer.run ?? item.run ?? 0) === Number(wanted.run);
  if (!item.answers.some(isOfRun)) return false;
  const answers = visible(item, wanted).filter((answer) => answer.role === "before" || isOfRun(answer)); // runs share it
  if (!answers.some((answer) => isScored(answer, wanted))) return false;
  return wanted.query === "" || finds(item.prompt, wanted.query) || answers.some((answer) => finds(answer.text, wanted.query));
}

// Without bounds every answer will do.
function isScored(answer, wanted) {
  if (wanted.least === null && wanted.most === null) return true;
  const scores = wanted.head === "" ? Object.values(answer.scores ?? {}) : [answer.scores?.[wanted.head]];
  return scores.some((score) => score !== undefined && score >= (wanted.least ?? -Infinity) && score <= (wanted.most ?? Infinity));
}

const finds = (text, query) => text.toLowerCase().includes(query);

// Score after minus before, of one run; null where one of the two is missing.
function change(item, wanted) {
  const score = (role) => item.answers.find((answer) => answer.role === role && answer.scores?.[wanted.head] !== undefined
    && (role === "before" || wanted.run === "" || (answer.run ?? 0) === Number(wanted.run)))?.scores[wanted.head];
  const [before, after] = [score("before"), score("after")];
  return before === undefined || after === undefined ? null : after - before;
}

function highest(item, wanted) {
  const scores = visible(item, wanted).map((answer) => answer.scores?.[wanted.head]).filter((score) => score !== undefined);
  return scores.length ? Math.max(...scores) : null;
}

const ORDERS = {
  given: null,
  fall: (item, wanted) => change(item, wanted),
  rise: (item, wanted) => { const by = change(item, wanted); return by === null ? null : -by; },
  high: (item, wanted) => { const score = highest(item, wanted); return score === null ? null : -score; },
};

// Items without a number to sort by come last.
function chosen(items, wanted) {
  const kept = items.filter((item) => holds(item, wanted));
  const key = ORDERS[wanted.order];
  if (!key) return kept;
  const keyed = kept.map((item) => [key(item, wanted) ?? Infinity, item]);
  return keyed.sort((a, b) => a[0] - b[0]).map(([, item]) => item);
}
