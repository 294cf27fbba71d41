/** proxy.test.ts - PROXY headers, written and read: whole, in pieces, random and mutated. */
import { SocketAddress } from "node:net";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { formatAddress, mulberry32, readValue, UsageError } from "../lib.ts";
import {
  cidrList,
  isWithin,
  proxyHeader,
  type ProxyReading,
  readProxyHeader,
} from "../load_balancer.ts";

const SIGNATURE = Buffer.from("\r\n\r\n\0\r\nQUIT\n");

/** What was read, in short: `more`, `bad`, or the length and the client. */
function shortly(reading: ProxyReading): string {
  if (reading.kind !== "done") return reading.kind;
  return `${reading.length} ${reading.client && formatAddress(reading.client)}`;
}
const read = (bytes: Buffer | string): string =>
  shortly(readProxyHeader(typeof bytes === "string" ? Buffer.from(bytes, "latin1") : bytes));

/** A header of version 2. `size` is the length that it claims. */
function binary(command: number, transport: number, rest: readonly number[], size = rest.length) {
  return Buffer.from([...SIGNATURE, command, transport, size >> 8, size & 255, ...rest]);
}
const V4 = [192, 0, 2, 1, 192, 0, 2, 2, 0xc8, 0x22, 1, 0xbb]; // ports 51234 and 443
const V6_HOST = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const V6 = [...V6_HOST, ...V6_HOST, 0xc8, 0x22, 1, 0xbb];

// ─── Writing ─────────────────────────────────────────────────────────────────

const writing = suite("PROXY: writing");

const header = (from: string, to: string): string =>
  proxyHeader({ host: from, port: 1 }, { host: to, port: 2 });

writing("says who has connected to whom", () => {
  assert.is(header("192.0.2.1", "10.0.0.1"), "PROXY TCP4 192.0.2.1 10.0.0.1 1 2\r\n");
  assert.is(header("2001:db8::1", "::1"), "PROXY TCP6 2001:db8::1 ::1 1 2\r\n");
  assert.is(header("::ffff:192.0.2.1", "::ffff:10.0.0.1"), header("192.0.2.1", "10.0.0.1"));
});

writing("names no zone, and nobody where the address is not known", () => {
  assert.is(header("fe80::1%eth0", "fe80::2%eth0"), "PROXY TCP6 fe80::1 fe80::2 1 2\r\n");
  assert.is(header("unknown", "10.0.0.1"), "PROXY UNKNOWN\r\n");
  assert.is(header("10.0.0.1", ""), "PROXY UNKNOWN\r\n");
});

writing("keeps the client also where the two are of different families", () => {
  const mixed = header("2001:db8::1", "10.0.255.1");
  assert.is(mixed, "PROXY TCP6 2001:db8::1 ::ffff:a00:ff01 1 2\r\n");
  assert.is(read(header("10.0.0.1", "::1")), "33 10.0.0.1:1");
});

writing("the longest header is within the protocol's limit", () => {
  const long = "aaaa:aaaa:aaaa:aaaa:aaaa:aaaa:aaaa:aaaa";
  const text = proxyHeader({ host: long, port: 65535 }, { host: long, port: 65535 });
  assert.ok(text.length <= 107);
  assert.is(read(text), `${text.length} [${long}]:65535`);
});

writing.run();

// ─── Reading ─────────────────────────────────────────────────────────────────

const reading = suite("PROXY: reading");

reading("reads version 1 and leaves what follows", () => {
  assert.is(read("PROXY TCP4 192.0.2.1 192.0.2.2 51234 443\r\nGET /"), "42 192.0.2.1:51234");
  assert.is(read("PROXY TCP6 2001:DB8:0::1 ::1 0 65535\r\n"), "38 [2001:db8::1]:0");
  assert.is(read("PROXY TCP6 ::FFFF:192.0.2.1 ::1 7 8\r\n"), "37 192.0.2.1:7");
});

reading("UNKNOWN keeps the connection's own address, whatever stands behind it", () => {
  assert.is(read("PROXY UNKNOWN\r\n"), "15 undefined");
  assert.is(read("PROXY UNKNOWN ffff::1 any thing\r\n"), "33 undefined");
});

const BAD_LINES = [
  "GET / HTTP/1.1\r\n",
  "proxy TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
  "PROXY  TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
  "PROXY\r\n",
  "PROXY \r\n",
  "PROXY TCP\r\n",
  "PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n",
  "PROXY UNKNOWNS\r\n",
  "PROXY TCP4\r\n",
  "PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
  "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n",
  "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n",
  "PROXY TCP4 1.2.3.4  1.2.3.4 1 2\r\n",
  "PROXY TCP4 1.2.3 1.2.3.4 1 2\r\n",
  "PROXY TCP4 1.2.3.256 1.2.3.4 1 2\r\n",
  "PROXY TCP4 ::1 ::1 1 2\r\n",
  "PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n",
  "PROXY TCP6 ::1%lo ::1 1 2\r\n",
  "PROXY TCP6 :::1 ::1 1 2\r\n",
  "PROXY TCP4 1.2.3.4 1.2.3.4 65536 2\r\n",
  "PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n",
  "PROXY TCP4 1.2.3.4 1.2.3.4 -1 2\r\n",
  "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n",
  "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\r\n",
  `PROXY UNKNOWN ${"x".repeat(92)}\r\n`,
];
for (const line of BAD_LINES)
  reading(`refuses ${JSON.stringify(line.slice(0, 50))}`, () => assert.is(read(line), "bad"));

reading("a line of 107 bytes passes, and the 107th byte without an end is too much", () => {
  const line = `PROXY UNKNOWN ${"x".repeat(91)}\r\n`;
  assert.is(line.length, 107);
  assert.is(read(line), "107 undefined");
  assert.is(read(line.slice(0, 106)), "more");
  assert.is(read(`${line.slice(0, 105)}xx`), "bad");
});

reading("reads version 2 and leaves what follows", () => {
  assert.is(read(binary(0x21, 0x11, V4)), "28 192.0.2.1:51234");
  assert.is(read(binary(0x21, 0x21, V6)), "52 [2001:db8::1]:51234");
  assert.is(
    read(Buffer.concat([binary(0x21, 0x11, V4), Buffer.from("GET")])),
    "28 192.0.2.1:51234",
  );
  const mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 0, 0, 1, ...V6.slice(16)];
  assert.is(read(binary(0x21, 0x21, mapped)), "52 10.0.0.1:51234");
});

reading("skips what stands behind the addresses, however long", () => {
  assert.is(read(binary(0x21, 0x11, [...V4, 4, 0, 1, 9])), "32 192.0.2.1:51234");
  const longest = [...V4, ...Array<number>(65535 - V4.length).fill(7)];
  assert.is(read(binary(0x21, 0x11, longest)), "65551 192.0.2.1:51234");
  assert.is(read(binary(0x21, 0x11, longest).subarray(0, 65550)), "more");
});

reading("LOCAL, UDP, UNIX and no family keep the connection's own address", () => {
  for (const [command, transport, size] of [
    [0x20, 0, 0],
    [0x20, 0x11, 12],
    [0x20, 0xff, 3],
    [0x20, 0x11, 3],
    [0x21, 0, 5],
    [0x21, 0x10, 12],
    [0x21, 0x12, 12],
    [0x21, 0x22, 36],
    [0x21, 0x31, 216],
    [0x21, 0x32, 216],
  ] as const)
    assert.is(read(binary(command, transport, Array(size).fill(1))), `${16 + size} undefined`);
});

reading("refuses another version, command, family, transport, or too little room", () => {
  for (const [command, transport, size] of [
    [0x11, 0x11, 12],
    [0x22, 0x11, 12],
    [0x2f, 0x11, 12],
    [0x31, 0x11, 12],
    [0x21, 0x41, 216],
    [0x21, 0x13, 12],
    [0x21, 0x11, 11],
    [0x21, 0x21, 35],
    [0x21, 0x31, 215],
  ] as const)
    assert.is(read(binary(command, transport, Array(size).fill(1))), "bad", String(size));
});

reading("what is malformed is bad at the first byte that shows it", () => {
  const shown = (bytes: Buffer): number => {
    let size = 0;
    while (read(bytes.subarray(0, size)) === "more") size += 1;
    return size;
  };
  assert.is(shown(Buffer.from("GET")), 1);
  assert.is(shown(Buffer.from("PRIXY")), 3);
  assert.is(shown(Buffer.from("PROXY TCP5")), 10);
  assert.is(shown(Buffer.from("PROXY TCP4 1.2.x")), 16);
  assert.is(shown(Buffer.from("PROXY TCP4 1.2.3.4.5 ")), 21);
  assert.is(shown(Buffer.from("PROXY TCP4 1.2.3.4 1.2.3.4 65536")), 32);
  assert.is(shown(Buffer.from("PROXY TCP4 1.2.3.4 1.2.3.4 1\r")), 29);
  assert.is(shown(binary(0x31, 0x11, V4)), 13);
  assert.is(shown(binary(0x21, 0x41, V4)), 14);
  assert.is(shown(binary(0x21, 0x21, V4)), 16);
});

// ─── Random and mutated headers ──────────────────────────────────────────────

const draws = mulberry32(20_221);
const below = (n: number): number => Math.floor(draws() * n);
const bytesOf = (size: number): number[] => Array.from({ length: size }, () => below(256));

/** A valid header, and what it says. */
function randomHeader(): { bytes: Buffer; client: string } {
  const port = below(65536);
  const isV6 = below(2) === 1;
  const host = bytesOf(isV6 ? 16 : 4);
  const groups = host.map((byte) => byte.toString(16).padStart(2, "0")).join("");
  const text = isV6 ? groups.replace(/.{4}(?!$)/g, "$&:") : host.join(".");
  const { address } = new SocketAddress({ address: text, family: isV6 ? "ipv6" : "ipv4" });
  const client = formatAddress({ host: address, port });
  if (below(2) === 1) {
    const line = `PROXY TCP${isV6 ? 6 : 4} ${text} ${text} ${port} ${below(65536)}\r\n`;
    return { bytes: Buffer.from(line), client };
  }
  const rest = [...host, ...host, port >> 8, port & 255, 0, 80, ...bytesOf(below(40))];
  return { bytes: binary(0x21, isV6 ? 0x21 : 0x11, rest), client };
}

/** `bytes` with a few of them changed, left out, repeated or put in. */
function mutated(bytes: Buffer): Buffer {
  const list = [...bytes];
  for (let times = 1 + below(3); times > 0; times -= 1) {
    const place = below(list.length);
    const letter = " \r\n\0:.0129fP%".charCodeAt(below(14));
    const piece = [[], [letter], [below(256)], list.slice(place, place + 3)][below(4)] ?? [];
    list.splice(place, below(2), ...piece);
  }
  return Buffer.from(list);
}

/** The readings of all beginnings of `bytes`, the longest last; of long ones the first 130. */
const grown = (bytes: Buffer): string[] =>
  Array.from({ length: Math.min(bytes.length, 130) + 1 }, (_, size) =>
    read(bytes.subarray(0, size)),
  );

reading("3,000 random headers, a byte at a time: more until the last byte, then the client", () => {
  for (let i = 0; i < 3000; i += 1) {
    const { bytes, client } = randomHeader();
    const readings = grown(bytes);
    const whole = `${bytes.length} ${client}`;
    assert.is(
      readings.findIndex((text) => text !== "more"),
      bytes.length,
    );
    assert.is(readings.at(-1), whole);
    assert.is(read(Buffer.concat([bytes, Buffer.from(bytesOf(below(50)))])), whole);
  }
});

reading("7,000 mutated headers: a verdict once given stands, and comes within the limit", () => {
  const seen = new Map<string, number>();
  for (let i = 0; i < 7000; i += 1) {
    const bytes = Buffer.concat([mutated(randomHeader().bytes), Buffer.from(bytesOf(60))]);
    const readings = grown(bytes);
    const first = readings.findIndex((text) => text !== "more");
    const verdict = readings[first] ?? "more";
    assert.ok(first < 0 || readings.slice(first).every((text) => text === verdict), `${i}`);
    const isBinary = bytes.subarray(0, 12).equals(SIGNATURE);
    assert.ok(isBinary || (first >= 0 && first <= 107), `${i}: decided after ${first} bytes`);
    const kind = verdict.replace(/\d.*/, "done");
    seen.set(kind, (seen.get(kind) ?? 0) + 1);
  }
  for (const kind of ["bad", "done", "more"]) assert.ok((seen.get(kind) ?? 0) > 50, kind);
});

reading(
  "what is read as a line is one by the protocol's own grammar, and the other way round",
  () => {
    const byte = "(?:\\d|[1-9]\\d|1\\d\\d|2[0-4]\\d|25[0-5])";
    const host = `${byte}(?:\\.${byte}){3}`;
    const line = new RegExp(`^PROXY TCP4 ${host} ${host} (\\d+) (\\d+)\\r\\n`);
    for (let i = 0; i < 5000; i += 1) {
      const v4 = `PROXY TCP4 ${bytesOf(4).join(".")} 10.0.0.1 ${below(65536)} 80\r\n`;
      const text = mutated(Buffer.from(v4)).toString("latin1");
      const ports = line.exec(text)?.slice(1) ?? ["x"];
      const isLine = ports.every((port) => /^(0|[1-9]\d*)$/.test(port) && Number(port) < 65536);
      const isOther = /^PROXY (UNKNOWN|TCP6)/.test(text);
      if (!isOther) assert.is(/^\d/.test(read(text)), isLine, JSON.stringify(text));
    }
  },
);

reading.run();

// ─── Networks ────────────────────────────────────────────────────────────────

const networks = suite("PROXY: networks");

const within = (list: string, host: string): boolean =>
  isWithin(readValue("--accept-proxy", cidrList, list), host);

networks("knows who is within, in either family, and as a mapped address", () => {
  const list = "10.0.0.0/8, 192.0.2.7,fd00::/8,::1";
  for (const host of ["10.1.2.3", "192.0.2.7", "fd12::1", "::1", "::ffff:10.1.2.3", "fd00::1%eth0"])
    assert.ok(within(list, host), host);
  for (const host of ["11.0.0.1", "192.0.2.8", "fe80::1", "::2", "::ffff:11.0.0.1", "unknown", ""])
    assert.not(within(list, host), host);
});

networks("takes all of a family, an address within its network, and a mapped network", () => {
  assert.ok(within("0.0.0.0/0", "203.0.113.9"));
  assert.not(within("0.0.0.0/0", "2001:db8::1"));
  assert.ok(within("::/0", "2001:db8::1"));
  assert.ok(within("10.1.2.3/8", "10.200.0.1"));
  assert.ok(within("::ffff:10.0.0.0/104", "10.200.0.1"));
  assert.not(within("::ffff:10.0.0.0/104", "11.0.0.1"));
  assert.not(within("::ffff:10.0.0.1", "10.0.0.2"));
});

networks("refuses what is no network", () => {
  const bad = ["", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/-1", "::/129", "10.0.0/8", "a.example/8"];
  for (const text of [...bad, "10.0.0.0/8,", "10.0.0.0/8/8", "[::1]", "::ffff:10.0.0.0/64"])
    assert.throws(
      () => readValue("--accept-proxy", cidrList, text),
      (error: unknown) => error instanceof UsageError && /10\.0\.0\.0\/8,fd00/.test(error.message),
      text,
    );
});

networks.run();
