// Decodes a PNG of one channel, 8 or 16 bits a pixel, to its exact values.
//
// A canvas would turn class ids into colours, has 8 bits a colour, and some browsers add noise to
// what is read from it. Read are the service's masks and confidence maps: grey or indexed, filter 0 or 2.

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];

// Returns {width, height, values: Uint8Array or Uint16Array, palette: Uint8Array or null}.
export async function decodePng(bytes) {
  if (SIGNATURE.some((value, index) => bytes[index] !== value)) throw new Error("expected a PNG, got other data");
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const chunks = readChunks(bytes, view);
  const header = new DataView(chunks.IHDR[0].slice().buffer);
  const [width, height] = [header.getUint32(0), header.getUint32(4)];
  const [depth, color, interlace] = [8, 9, 12].map((at) => header.getUint8(at));
  if (![8, 16].includes(depth) || ![0, 3].includes(color) || interlace) {
    throw new Error(`expected one channel of 8 or 16 bits, got depth ${depth} and colour type ${color}`);
  }
  const filtered = await inflate(chunks.IDAT);
  const plain = unfilter(filtered, width * depth / 8, height);
  return { width, height, values: depth === 8 ? plain : bigEndian(plain), palette: chunks.PLTE?.[0] ?? null };
}

export function bytesOfBase64(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

function readChunks(bytes, view) {
  const chunks = {};
  for (let at = 8; at + 8 <= bytes.length;) {
    const length = view.getUint32(at);
    const type = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    (chunks[type] ??= []).push(bytes.subarray(at + 8, at + 8 + length));
    at += length + 12;
  }
  return chunks;
}

async function inflate(parts) {
  const stream = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// Reverses the filter of each row: 0 is none and 2 the difference from the row above, the one that
// the service uses.
function unfilter(data, rowBytes, height) {
  const out = new Uint8Array(rowBytes * height);
  for (let y = 0; y < height; y++) {
    const type = data[y * (rowBytes + 1)];
    const source = y * (rowBytes + 1) + 1;
    const row = y * rowBytes;
    if (type !== 0 && type !== 2) throw new Error(`expected PNG's filter 0 or 2, got ${type}`);
    out.set(data.subarray(source, source + rowBytes), row);
    if (type === 2 && y) for (let x = row; x < row + rowBytes; x++) out[x] += out[x - rowBytes];
  }
  return out;
}

function bigEndian(bytes) {
  const view = new DataView(bytes.buffer);
  return Uint16Array.from({ length: bytes.length / 2 }, (_, i) => view.getUint16(2 * i));
}
