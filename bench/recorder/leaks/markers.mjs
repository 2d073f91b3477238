// The texts of one case that must go and those that must stay. A text belongs
// to the case that asked for it: its digits come from the case's name, so that
// it is the same in every run and occurs in no other case.

import { createHash } from 'node:crypto';

const base64url = (value) => Buffer.from(value).toString('base64url');

function luhnDigit(digits) {
  const sum = [...digits].reverse().reduce((all, digit, i) => {
    const value = Number(digit) * (i % 2 === 0 ? 2 : 1);
    return all + (value > 9 ? value - 9 : value);
  }, 0);
  return String((10 - (sum % 10)) % 10);
}

export class Markers {
  secrets = new Set();
  kept = new Set();

  constructor(name) {
    this.name = name;
  }

  #hash(label) {
    return createHash('sha256').update(`${this.name}/${label}`).digest();
  }

  #hex(label) {
    return this.#hash(label).toString('hex').slice(0, 6);
  }

  // A text that must not be stored.
  secret(label = 'value') {
    return this.plant(`LEAK-${this.name}-${label}-${this.#hex(label)}`);
  }

  // Any other text that must not be stored.
  plant(text) {
    this.secrets.add(text);
    return text;
  }

  // A text that must still be there after masking. Short, so that nobody takes
  // it for a token.
  keep(label = 'beside') {
    const text = `KEEP-${label}-${this.#hex(`keep ${label}`)}`;
    this.kept.add(text);
    return text;
  }

  digits(label, count) {
    const [first, ...rest] = this.#hash(label);
    return this.plant(`${1 + (first % 9)}${rest.map((byte) => byte % 10).join('')}`.slice(0, count));
  }

  // A card number that passes Luhn's check, in groups of four.
  card(label, separator = ' ') {
    const digits = `411111${[...this.#hash(label)].slice(0, 9).map((byte) => byte % 10).join('')}`;
    return this.plant(`${digits}${luhnDigit(digits)}`.replace(/(\d{4})(?=\d)/g, `$1${separator}`));
  }

  // A token with header, payload and signature. Of the parts only the header
  // tells nothing.
  jwt(label = 'token') {
    const payload = base64url(JSON.stringify({ sub: `${this.name}-${label}`, email: 'ada@mail.example', id: this.#hex(label) }));
    const signature = this.#hash(`signature ${label}`).toString('base64url');
    const token = `${base64url('{"alg":"HS256","typ":"JWT"}')}.${this.plant(payload)}.${this.plant(signature)}`;
    return this.plant(token);
  }

  bearer(label = 'bearer') {
    return this.plant(this.#hash(label).toString('base64url'));
  }
}
