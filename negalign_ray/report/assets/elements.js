// Small makers of elements. Texts only ever become text nodes.
"use strict";

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

const make = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const draw = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// Three decimals below 10, two below 100, one above; very small ones with an exponent; thousands apart.
function shown(value, isWhole = false) {
  const size = Math.abs(value);
  if (isWhole && size < 10000) return value.toFixed(0).replace("-", "−");
  if (size > 0 && size < 0.001) return value.toExponential(1).replaceAll("-", "−").replace("+", "");
  if (size >= 10000) return Math.round(value).toLocaleString("en").replaceAll(",", "\u202f").replace("-", "−");
  const text = value.toFixed(size < 10 ? 3 : size < 100 ? 2 : 1);
  return (Number(text) === 0 ? text.replace("-", "") : text).replace("-", "−");
}

// At most once per frame, with the newest arguments.
function perFrame(action) {
  let newest = null;
  return (...values) => {
    if (newest === null) requestAnimationFrame(() => { const now = newest; newest = null; action(...now); });
    newest = values;
  };
}
