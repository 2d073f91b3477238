// Blocked elements, of which only a box may stay.

const SENSITIVE = { inputs: 'sensitive' };

const setText = ([selector, text]) => { document.querySelector(selector).firstChild.data = text; };

const blocked = (name, description, content, change, before) => ({
  name,
  description,
  async run(visit) {
    await visit.load(`<p>${visit.keep()}</p><div id="b" style="width: 300px; min-height: 40px" data-clairvio-block>${content(visit)}</div>`);
    if (before) await before(visit);
    await visit.start();
    await visit.flush();
    if (change) await change(visit);
    await visit.snapshotWith();
  },
});

const leaks = [
  blocked('blocked-text', 'Text, attributes and comments, and a change of each.',
    (visit) => `<p id="t" title="${visit.secret('title')}">${visit.secret('text')}</p><!-- ${visit.secret('comment')} -->`,
    async (visit) => {
      await visit.run(setText, ['#t', visit.secret('changed')]);
      await visit.flush();
      await visit.run((text) => { document.querySelector('#t').title = text; }, visit.secret('retitled'));
    }),
  blocked('blocked-image', 'An image: text in its place and the query of its address.',
    (visit) => `<img id="i" width="40" height="20" src="/photo.png?q=${visit.secret('src')}" alt="${visit.secret('alt')}">`,
    (visit) => visit.run((text) => { document.querySelector('#i').src = `/photo.png?q=${text}`; }, visit.secret('changed'))),
  blocked('blocked-input', 'Fields: values in snapshots and what is typed.',
    (visit) => `<input id="i" value="${visit.secret('given')}" placeholder="${visit.secret('placeholder')}"><textarea id="a"></textarea>`,
    async (visit) => {
      await visit.clear('#i');
      await visit.type('#i', visit.secret('typed'));
      await visit.flush();
      await visit.type('#a', visit.secret('area'));
    }),
  blocked('blocked-frame', 'A frame of the same origin, changed later.',
    (visit) => {
      visit.serveFrame('/frame', `<p id="t">${visit.secret('text')}</p>`);
      return '<iframe id="f" src="/frame"></iframe>';
    },
    (visit) => visit.run((text) => {
      document.querySelector('#f').contentDocument.querySelector('#t').firstChild.data = text;
    }, visit.secret('changed'))),
  blocked('blocked-shadow-root', 'A shadow root, changed later, with a style sheet of its own.',
    () => '<div id="h"></div>',
    (visit) => visit.run(([text, rule]) => {
      document.querySelector('#h').shadowRoot.querySelector('p').firstChild.data = text;
      window.sheet.insertRule(`p::after { content: "${rule}"; }`);
    }, [visit.secret('changed'), visit.secret('rule')]),
    (visit) => visit.run((text) => {
      const root = document.querySelector('#h').attachShadow({ mode: 'open' });
      root.innerHTML = `<p>${text}</p>`;
      window.sheet = new CSSStyleSheet();
      root.adoptedStyleSheets = [window.sheet];
    }, visit.secret('text'))),
  blocked('blocked-canvas', 'Text that is drawn on a canvas.',
    () => '<canvas id="c" width="200" height="30"></canvas>',
    async (visit) => {
      await visit.run((text) => { document.querySelector('#c').getContext('2d').fillText(text, 4, 20); }, visit.secret());
      await visit.page.waitForTimeout(200);
    }),
  blocked('blocked-changes', 'Nodes are added, replaced and removed inside, batch by batch, across a full snapshot.',
    (visit) => `<ul id="l"><li>${visit.secret('given')}</li></ul>`,
    async (visit) => {
      const add = async (label) => {
        await visit.run((html) => { document.querySelector('#l').insertAdjacentHTML('beforeend', html); },
          `<li><b title="${visit.secret(`title-${label}`)}">${visit.secret(label)}</b></li>`);
        await visit.flush();
      };
      await add('one');
      await add('two');
      await visit.run((text) => { document.querySelector('#l b').firstChild.data = text; }, visit.secret('changed'));
      await visit.snapshotWith();
      await add('three');
      await visit.run((html) => { document.querySelector('#b').innerHTML = html; }, `<p>${visit.secret('replaced')}</p>`);
    }),
  {
    name: 'blocked-added-later',
    description: 'A blocked element is added after the snapshot and changes in later batches.',
    async run(visit) {
      await visit.open(`<p>${visit.keep()}</p><div id="o"></div>`);
      await visit.flush();
      await visit.run((html) => { document.querySelector('#o').innerHTML = html; },
        `<div data-clairvio-block><p id="t">${visit.secret('added')}</p></div>`);
      await visit.flush();
      await visit.run(setText, ['#t', visit.secret('changed')]);
      await visit.snapshotWith();
    },
  },
  {
    name: 'blocked-set-late',
    description: 'An element that was open is blocked later; secret is what comes after that.',
    async run(visit) {
      await visit.open(`<p>${visit.keep()}</p><div id="b"><p id="t">${visit.keep('before')}</p></div>`);
      await visit.flush();
      await visit.run(() => { document.querySelector('#b').setAttribute('data-clairvio-block', ''); });
      await visit.flush();
      await visit.run(setText, ['#t', visit.secret('changed')]);
      await visit.flush();
      await visit.run((html) => { document.querySelector('#b').insertAdjacentHTML('beforeend', html); }, `<p>${visit.secret('added')}</p>`);
      await visit.snapshotWith();
    },
  },
  {
    name: 'blocked-by-selector',
    description: 'The link blocks elements by selector.',
    rules: { inputs: 'sensitive', block_selectors: ['.invoice', '#photo'] },
    async run(visit) {
      await visit.open(`<p>${visit.keep()}</p><div class="card invoice"><p id="t">${visit.secret('text')}</p></div>
        <figure id="photo"><img src="/photo.png?q=${visit.secret('src')}" alt="${visit.secret('alt')}"></figure>`);
      await visit.flush();
      await visit.run(setText, ['#t', visit.secret('changed')]);
      await visit.snapshotWith();
    },
  },
];

export const cases = leaks.map((leak) => ({ class: 'blocked', rules: SENSITIVE, ...leak }));
