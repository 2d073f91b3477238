// What the rules of a link mask beyond what is always masked.

const setText = ([selector, text]) => { document.querySelector(selector).firstChild.data = text; };

const selects = (name, description, maskSelectors, body, selector) => ({
  name,
  description,
  rules: { inputs: 'sensitive', mask_selectors: maskSelectors },
  async run(visit) {
    await visit.open(body(visit));
    await visit.flush();
    await visit.run(setText, [selector, visit.secret('changed')]);
    await visit.flush();
    await visit.run(([where, text]) => { document.querySelector(where).title = text; }, [selector, visit.secret('title')]);
    await visit.snapshotWith();
  },
});

const field = (name, description, html, work) => ({
  name,
  description,
  rules: {},
  async run(visit) {
    await visit.open(`<p>${visit.keep()}</p>${html(visit)}`);
    await visit.flush();
    await work(visit);
    await visit.snapshotWith();
  },
});

const typed = async (visit) => {
  await visit.clear('#f');
  await visit.type('#f', visit.secret('typed'));
};

const rules = [
  selects('rules-selector-class', 'Elements of a class.', ['.private'],
    (visit) => `<p>${visit.keep()}</p><p class="a private b" id="t">${visit.secret('given')}</p><p class="privateer">${visit.keep('other')}</p>`, '#t'),
  selects('rules-selector-id', 'An element by its id.', ['#customer'],
    (visit) => `<p id="customers">${visit.keep()}</p><p id="customer">${visit.secret('given')}</p>`, '#customer'),
  selects('rules-selector-attribute', 'Elements by an attribute, its value, its beginning, and a word in it.',
    ['[data-private]', 'p[data-kind="person"]', '[data-path^="/people/"]', '[data-tags~="secret"]'],
    (visit) => `<p data-kind="thing">${visit.keep()}</p><p data-private id="t">${visit.secret('given')}</p>
      <p data-kind="person">${visit.secret('value')}</p><p data-path="/people/7">${visit.secret('begin')}</p>
      <p data-tags="big secret">${visit.secret('word')}</p><p data-tags="secretive">${visit.keep('other')}</p>`, '#t'),
  selects('rules-selector-child', 'Children of an element, and not what is deeper.', ['.card > b'],
    (visit) => `<b>${visit.keep()}</b><div class="card"><b id="t">${visit.secret('given')}</b><i><b>${visit.keep('deeper')}</b></i></div>`, '#t'),
  selects('rules-selector-descendant', 'What is below an element, however deep.', ['.card .name'],
    (visit) => `<b class="name">${visit.keep()}</b><div class="card"><i><u><b class="name" id="t">${visit.secret('given')}</b></u></i></div>`, '#t'),
  selects('rules-selector-not', 'All elements with an id but some.', ['p[id]:not(.public)'],
    (visit) => `<p class="public">${visit.keep()}</p><p id="t">${visit.secret('given')}</p><div>${visit.keep('other')}</div>`, '#t'),
  selects('rules-selector-first-child', 'The first child.', ['td:first-child'],
    (visit) => `<table><tbody><tr><td id="t">${visit.secret('given')}</td><td>beside</td></tr></tbody></table>`, '#t'),
  selects('rules-selector-list', 'A list of selectors in one text.', ['.name, #mail , li.entry > span'],
    (visit) => `<p>${visit.keep()}</p><p class="name" id="t">${visit.secret('class')}</p><p id="mail">${visit.secret('id')}</p>
      <ul><li class="entry"><span>${visit.secret('child')}</span> ${visit.keep('entry')}</li></ul>`, '#t'),

  {
    name: 'rules-selector-added-later',
    description: 'Elements that selectors mask come by mutations, the matching parent in an earlier batch than the child.',
    rules: { inputs: 'sensitive', mask_selectors: ['.card > b', '.private'] },
    async run(visit) {
      await visit.open(`<p>${visit.keep()}</p><div id="o"></div>`);
      await visit.flush();
      await visit.run(() => { document.querySelector('#o').innerHTML = '<div class="card" id="c"></div>'; });
      await visit.flush();
      await visit.run((html) => { document.querySelector('#c').innerHTML = html; }, `<b id="t">${visit.secret('child')}</b>`);
      await visit.flush();
      await visit.run((html) => { document.querySelector('#o').insertAdjacentHTML('beforeend', html); },
        `<p class="private">${visit.secret('class')}</p>`);
      await visit.flush();
      await visit.run(setText, ['#t', visit.secret('changed')]);
      await visit.snapshotWith();
      await visit.run(setText, ['#t', visit.secret('later')]);
    },
  },

  {
    name: 'rules-text-all',
    description: 'All texts are masked: of elements, titles, placeholders, labels, options, buttons, comments; changed and added ones too.',
    rules: { inputs: 'sensitive', text: 'all' },
    async run(visit) {
      await visit.open(`<p id="t" class="${visit.keep('class')}" title="${visit.secret('title')}">${visit.secret('text')}</p>
        <!-- ${visit.secret('comment')} --><img src="/photo.png" width="20" height="20" alt="${visit.secret('alt')}">
        <input placeholder="${visit.secret('placeholder')}" aria-label="${visit.secret('label')}">
        <select><optgroup label="${visit.secret('group')}"><option>${visit.secret('option')}</option></optgroup></select>
        <button>${visit.secret('button')}</button><input type="submit" value="${visit.secret('submit')}">
        <svg width="200" height="20"><text y="12">${visit.secret('svg')}</text></svg>
        <div id="e" contenteditable="true">x</div>`);
      await visit.flush();
      await visit.run(setText, ['#t', visit.secret('changed')]);
      await visit.flush();
      await visit.run((html) => { document.body.insertAdjacentHTML('beforeend', html); },
        `<p class="${visit.keep('added')}" title="${visit.secret('added-title')}">${visit.secret('added')}</p>`);
      await visit.flush();
      await visit.type('#e', visit.secret('typed'));
      await visit.flush();
      await visit.run((text) => { document.title = text; }, visit.secret('page-title'));
      await visit.flush();
      await visit.snapshot();
      await visit.flush();
    },
  },
  {
    name: 'rules-attributes',
    description: 'Attributes that the link names are masked on all elements.',
    rules: { inputs: 'sensitive', attributes: ['data-customer', 'title'] },
    async run(visit) {
      await visit.open(`<p id="t" data-customer="${visit.secret('customer')}" title="${visit.secret('title')}"
        data-step="${visit.keep('step')}">${visit.keep()}</p>`);
      await visit.flush();
      await visit.run((text) => { document.querySelector('#t').dataset.customer = text; }, visit.secret('changed'));
      await visit.flush();
      await visit.run((html) => { document.body.insertAdjacentHTML('beforeend', html); },
        `<b TITLE="${visit.secret('added')}">${visit.keep('added')}</b>`);
      await visit.snapshotWith();
    },
  },

  field('rules-inputs-text', 'By default all fields are masked: a text field.',
    (visit) => `<input id="f" value="${visit.secret('given')}">`, typed),
  field('rules-inputs-email', 'By default all fields are masked: an e-mail field.',
    (visit) => `<input type="email" id="f" value="${visit.secret('given')}">`, typed),
  field('rules-inputs-phone', 'By default all fields are masked: a telephone field.',
    (visit) => `<input type="tel" id="f" value="${visit.secret('given')}">`, typed),
  field('rules-inputs-search', 'By default all fields are masked: a search field and one of an unknown type.',
    (visit) => `<input type="search" id="f"><input type="x-code" value="${visit.secret('unknown')}">`, typed),
  field('rules-inputs-area', 'By default all fields are masked: a text area.',
    (visit) => `<textarea id="f">${visit.secret('given')}</textarea>`, typed),
  field('rules-inputs-number', 'By default all fields are masked: a number.',
    (visit) => `<input type="number" id="f" value="${visit.digits('given', 14)}">`, async (visit) => {
      await visit.clear('#f');
      await visit.type('#f', visit.digits('typed', 14));
    }),
  field('rules-inputs-select', 'By default all fields are masked: the choice of a select. Its value is the option\'s text with single spaces, and so not the option\'s text itself.',
    (visit) => {
      const words = visit.secret('choice').split('choice');
      visit.secrets.clear();
      visit.plant(words.join('made choice'));
      return `<select id="f"><option>none</option><option>${words.join('made  choice')}</option></select>`;
    },
    (visit) => visit.page.locator('#f').selectOption({ index: 1 })),
  field('rules-inputs-editable', 'By default all fields are masked: an element that can be edited.',
    () => '<div id="f" contenteditable="true">x</div>',
    (visit) => visit.type('#f', visit.secret('typed'))),
  field('rules-inputs-by-script', 'By default all fields are masked: values that a script sets.',
    () => '<input id="f"><input id="g"><textarea id="h"></textarea>',
    async (visit) => {
      await visit.run((text) => { document.querySelector('#f').value = text; }, visit.secret('property'));
      await visit.flush();
      await visit.run((text) => { document.querySelector('#g').setAttribute('value', text); }, visit.secret('attribute'));
      await visit.flush();
      await visit.run((text) => { document.querySelector('#h').textContent = text; }, visit.secret('text'));
    }),
  field('rules-inputs-added', 'By default all fields are masked: fields that are added later with their values.',
    () => '<form id="o"></form>',
    (visit) => visit.run((html) => { document.querySelector('#o').innerHTML = html; },
      `<input value="${visit.secret('value')}"><textarea>${visit.secret('area')}</textarea>`)),
];

export const cases = rules.map((leak) => ({ class: 'rules', ...leak }));
