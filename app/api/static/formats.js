// Numbers and dates as text. A number and its unit stay on one line.

export function percent(fraction, digits = 1) {
  return `${(100 * fraction).toFixed(digits)}\u00a0%`;
}

// A level such as 0.1 without needless digits: 10 %.
export function level(fraction) {
  return `${Number((100 * fraction).toFixed(2))}\u00a0%`;
}

export function date(text) {
  return text ? text.slice(0, 16).replace("T", " ") : "";
}

export function number(value, digits = 4) {
  return value === null || value === undefined ? "–" : value.toFixed(digits);
}

export function signed(value, digits = 4) {
  return `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`;
}

export function bytes(count) {
  const units = ["B", "KB", "MB", "GB"];
  const index = Math.min(units.length - 1, Math.floor(Math.log2(Math.max(count, 1)) / 10));
  return `${(count / 1024 ** index).toFixed(index ? 1 : 0)} ${units[index]}`;
}

// A version by its method, time and the beginning of its checksum.
export function versionName({ id, method, fitted_at: fitted }) {
  return `${method}, ${date(fitted)} (${id.split("-").at(-1).slice(0, 6)})`;
}
