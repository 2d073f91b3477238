// Fields whose value is secret whatever the rules: passwords, sensitive
// autocomplete, hidden inputs.

const SENSITIVE = { inputs: 'sensitive' };

const setType = ([selector, type]) => { document.querySelector(selector).type = type; };

const password = [
  {
    name: 'password-typed',
    description: 'Typed into a password field; the value is in a later full snapshot too.',
    rules: SENSITIVE,
    async run(visit) {
      await visit.open(`<p>${visit.keep()}</p><label>Password <input type="password" id="p"></label>`);
      await visit.flush();
      await visit.type('#p', visit.secret());
      await visit.snapshotWith();
    },
  },
  {
    name: 'password-filled-before',
    description: 'The browser had filled in the password before recording began.',
    rules: SENSITIVE,
    async run(visit) {
      await visit.load(`<p>${visit.keep()}</p><label>Password <input type="password" id="p"></label>`);
      await visit.type('#p', visit.secret());
      await visit.start();
      await visit.flush();
      await visit.type('#p', visit.secret('more'));
    },
  },
  {
    name: 'password-toggled',
    description: 'Typed, then shown as text by a button, then typed again while it is shown.',
    rules: SENSITIVE,
    async run(visit) {
      await visit.open(`<p>${visit.keep()}</p><label>Password <input type="password" id="p"></label>`);
      await visit.flush();
      await visit.type('#p', visit.secret('hidden'));
      await visit.flush();
      await visit.run(setType, ['#p', 'text']);
      await visit.flush();
      await visit.clear('#p');
      await visit.type('#p', visit.secret('shown'));
      await visit.snapshotWith();
      await visit.clear('#p');
      await visit.type('#p', visit.secret('later'));
    },
  },
  {
    name: 'password-toggled-before',
    description: 'Shown as text before the first snapshot; autocomplete says that it is the current password.',
    rules: SENSITIVE,
    async run(visit) {
      await visit.load(`<p>${visit.keep()}</p>
        <label>Secret word <input type="password" id="p" name="field" autocomplete="current-password"></label>`);
      await visit.type('#p', visit.secret('before'));
      await visit.run(setType, ['#p', 'text']);
      await visit.start();
      await visit.flush();
      await visit.clear('#p');
      await visit.type('#p', visit.secret('after'));
      await visit.snapshotWith();
    },
  },
  {
    name: 'password-toggled-before-by-name',
    description: 'Shown as text before the first snapshot; only its name says that it is a password.',
    rules: SENSITIVE,
    async run(visit) {
      await visit.load(`<p>${visit.keep()}</p><label>Secret word <input type="password" id="p" name="password"></label>`);
      await visit.type('#p', visit.secret('before'));
      await visit.run(setType, ['#p', 'text']);
      await visit.start();
      await visit.flush();
      await visit.clear('#p');
      await visit.type('#p', visit.secret('after'));
      await visit.snapshotWith();
    },
  },
  {
    name: 'password-toggled-often',
    description: 'Shown and hidden again several times, typed in both states, with a full snapshot while it is shown.',
    rules: SENSITIVE,
    async run(visit) {
      await visit.open(`<p>${visit.keep()}</p><label>Password <input type="password" id="p"></label>`);
      for (const [type, label] of [['password', 'one'], ['text', 'two'], ['password', 'three'], ['text', 'four']]) {
        await visit.flush();
        await visit.run(setType, ['#p', type]);
        await visit.flush();
        await visit.clear('#p');
        await visit.type('#p', visit.secret(label));
      }
      await visit.snapshotWith();
      await visit.run(setType, ['#p', 'password']);
      await visit.flush();
      await visit.clear('#p');
      await visit.type('#p', visit.secret('five'));
    },
  },
  {
    name: 'password-added-later',
    description: 'The password field comes by a mutation, one empty and one with a value.',
    rules: SENSITIVE,
    async run(visit) {
      await visit.open(`<p>${visit.keep()}</p><form id="form"></form>`);
      await visit.flush();
      await visit.run((value) => {
        document.querySelector('#form').innerHTML = `
          <input type="password" id="p"><input type="password" id="filled" value="${value}">`;
      }, visit.secret('filled'));
      await visit.flush();
      await visit.type('#p', visit.secret('typed'));
      await visit.snapshotWith();
    },
  },
  {
    name: 'password-set-by-script',
    description: 'A script sets the value, by property and by attribute.',
    rules: SENSITIVE,
    async run(visit) {
      await visit.open(`<p>${visit.keep()}</p><input type="password" id="a"><input type="password" id="b">`);
      await visit.flush();
      await visit.run((value) => { document.querySelector('#a').value = value; }, visit.secret('property'));
      await visit.flush();
      await visit.run((value) => { document.querySelector('#b').setAttribute('value', value); }, visit.secret('attribute'));
      await visit.snapshotWith();
    },
  },
  {
    name: 'password-replaced',
    description: 'The page shows the password by putting a text field of the same name in the place of the password field.',
    rules: SENSITIVE,
    async run(visit) {
      await visit.open(`<p>${visit.keep()}</p><form><input type="password" id="p" name="password"></form>`);
      await visit.flush();
      await visit.type('#p', visit.secret('typed'));
      await visit.flush();
      await visit.run(() => {
        const old = document.querySelector('#p');
        const shown = Object.assign(document.createElement('input'), { type: 'text', id: 'p', name: 'password' });
        shown.setAttribute('value', old.value);
        old.replaceWith(shown);
      });
      await visit.flush();
      await visit.type('#p', visit.secret('shown'));
      await visit.snapshotWith();
    },
  },
  {
    name: 'password-in-capitals',
    description: 'The type attribute is written PASSWORD.',
    rules: SENSITIVE,
    async run(visit) {
      await visit.open(`<p>${visit.keep()}</p><input TYPE="PassWord" id="p" value="${visit.secret('given')}">`);
      await visit.flush();
      await visit.clear('#p');
      await visit.type('#p', visit.secret('typed'));
      await visit.snapshotWith();
    },
  },
  {
    name: 'password-in-frame',
    description: 'A password field in a frame of the same origin.',
    rules: SENSITIVE,
    async run(visit) {
      visit.serveFrame('/frame', '<input type="password" id="p">');
      await visit.open(`<p>${visit.keep()}</p><iframe src="/frame"></iframe>`);
      await visit.flush();
      await visit.page.frameLocator('iframe').locator('#p').click();
      await visit.page.keyboard.type(visit.secret());
      await visit.snapshotWith();
    },
  },
  {
    name: 'password-in-shadow-root',
    description: 'A password field in a shadow root.',
    rules: SENSITIVE,
    async run(visit) {
      await visit.load(`<p>${visit.keep()}</p><div id="host"></div>`);
      await visit.run(() => {
        document.querySelector('#host').attachShadow({ mode: 'open' }).innerHTML = '<input type="password" id="p">';
      });
      await visit.start();
      await visit.flush();
      await visit.type('#p', visit.secret());
      await visit.snapshotWith();
    },
  },
  {
    name: 'password-beside-ordinary-field',
    description: 'Under these rules an ordinary field beside the password stays readable.',
    rules: SENSITIVE,
    async run(visit) {
      await visit.open(`<label>City <input name="city" id="c" value="${visit.keep('given')}"></label>
        <label>Password <input type="password" id="p"></label>`);
      await visit.flush();
      await visit.type('#p', visit.secret());
      await visit.flush();
      await visit.clear('#c');
      await visit.type('#c', visit.keep('typed'));
    },
  },
];

const typedInto = (name, description, input) => ({
  name,
  description,
  rules: SENSITIVE,
  async run(visit) {
    await visit.open(`<p>${visit.keep()}</p><label>Field ${input(visit)}</label>`);
    await visit.flush();
    await visit.clear('#f');
    await visit.type('#f', visit.secret('typed'));
    await visit.snapshotWith();
  },
});

const sensitive = [
  typedInto('sensitive-one-time-code', 'A field with autocomplete one-time-code.',
    (visit) => `<input id="f" name="a" autocomplete="one-time-code" value="${visit.secret('given')}">`),
  typedInto('sensitive-card-code', 'A field with autocomplete cc-csc.',
    (visit) => `<input id="f" name="a" autocomplete="cc-csc" value="${visit.secret('given')}">`),
  typedInto('sensitive-card-expiry', 'A field with autocomplete cc-exp.',
    (visit) => `<input id="f" name="a" autocomplete="cc-exp" value="${visit.secret('given')}">`),
  typedInto('sensitive-new-password', 'A text field with autocomplete new-password.',
    (visit) => `<input type="text" id="f" name="a" autocomplete="new-password" value="${visit.secret('given')}">`),
  typedInto('sensitive-several-words', 'Autocomplete with section and group before the field, in capitals.',
    (visit) => `<input id="f" name="a" autocomplete="section-pay  Billing CC-NUMBER" value="${visit.secret('given')}">`),
  {
    name: 'sensitive-card-number',
    description: 'A card number typed into a field with autocomplete cc-number.',
    rules: SENSITIVE,
    async run(visit) {
      await visit.open(`<p>${visit.keep()}</p><label>Card <input id="f" name="a" autocomplete="cc-number" inputmode="numeric"></label>`);
      await visit.flush();
      await visit.type('#f', visit.card('typed'));
      await visit.snapshotWith();
    },
  },
  {
    name: 'sensitive-set-later',
    description: 'Autocomplete is set on a field that was ordinary before; secret is what is typed after that.',
    rules: SENSITIVE,
    async run(visit) {
      await visit.open(`<p>${visit.keep()}</p><label>Code <input id="f" name="a"></label>`);
      await visit.flush();
      await visit.run(() => { document.querySelector('#f').setAttribute('autocomplete', 'one-time-code'); });
      await visit.flush();
      await visit.type('#f', visit.secret());
      await visit.snapshotWith();
    },
  },
  {
    name: 'sensitive-hidden',
    description: 'The value of a hidden input in the snapshot, and of one that is added later.',
    rules: SENSITIVE,
    async run(visit) {
      await visit.open(`<p>${visit.keep()}</p><form><input type="hidden" name="a" value="${visit.secret('given')}"></form>`);
      await visit.flush();
      await visit.run((value) => {
        const input = Object.assign(document.createElement('input'), { type: 'hidden', name: 'b' });
        input.value = value;
        document.querySelector('form').append(input);
      }, visit.secret('added'));
      await visit.snapshotWith();
    },
  },
  {
    name: 'sensitive-hidden-later',
    description: 'A text field is made a hidden one; secret is the value that it gets after that.',
    rules: SENSITIVE,
    async run(visit) {
      await visit.open(`<p>${visit.keep()}</p><form><input type="text" id="f" name="a" value="blue"></form>`);
      await visit.flush();
      await visit.run(setType, ['#f', 'hidden']);
      await visit.flush();
      await visit.run((value) => { document.querySelector('#f').value = value; }, visit.secret());
      await visit.snapshotWith();
    },
  },
  {
    name: 'sensitive-hidden-changed',
    description: 'The value of a hidden input is changed by property and by attribute.',
    rules: SENSITIVE,
    async run(visit) {
      await visit.open(`<p>${visit.keep()}</p><input type="hidden" id="f" name="a" value="blue">`);
      await visit.flush();
      await visit.run((value) => { document.querySelector('#f').setAttribute('value', value); }, visit.secret('attribute'));
      await visit.flush();
      await visit.run((value) => { document.querySelector('#f').value = value; }, visit.secret('property'));
    },
  },
];

export const cases = [
  ...password.map((leak) => ({ class: 'password', ...leak })),
  ...sensitive.map((leak) => ({ class: 'sensitive', ...leak })),
];
