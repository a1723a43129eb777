// Writes files into a zip archive without compression, as images are compressed already.

const LOCAL = 0x04034b50;
const CENTRAL = 0x02014b50;
const END = 0x06054b50;
const UTF8 = 0x0800; // flag: names are UTF-8
const LIMIT = 0xffffffff; // of sizes without the zip64 extension

// Returns a Blob of the archive. Raises RangeError for more than 65,535 files or 4 GiB.
export async function zipArchive(files) {
  const parts = [];
  const directory = [];
  let offset = 0;
  for (const file of files) {
    const name = new TextEncoder().encode(file.name);
    const fields = [[2, 20], [2, UTF8], [2, 0], [2, 0], [2, 0x21], [4, await checksum(file)], [4, file.size], [4, file.size], [2, name.length], [2, 0]];
    parts.push(record([[4, LOCAL], ...fields]), name, file);
    directory.push(record([[4, CENTRAL], [2, 20], ...fields, [2, 0], [2, 0], [2, 0], [4, 0], [4, offset]]), name);
    offset += 30 + name.length + file.size;
  }
  const size = directory.reduce((sum, part) => sum + part.byteLength, 0);
  if (files.length > 0xffff || offset + size > LIMIT) throw new RangeError("Expected at most 65,535 files and 4 GiB; make the zip archive yourself for more.");
  const end = record([[4, END], [2, 0], [2, 0], [2, files.length], [2, files.length], [4, size], [4, offset], [2, 0]]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

// Little-endian numbers of the given widths in bytes.
function record(fields) {
  const bytes = new Uint8Array(fields.reduce((sum, [width]) => sum + width, 0));
  const view = new DataView(bytes.buffer);
  let at = 0;
  for (const [width, value] of fields) {
    if (width === 2) view.setUint16(at, value, true);
    else view.setUint32(at, value, true);
    at += width;
  }
  return bytes;
}

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  let value = n;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

async function checksum(file) {
  let crc = 0xffffffff;
  for (const byte of new Uint8Array(await file.arrayBuffer())) crc = TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}
