// Masked elements that change: in other batches than the snapshot that says
// that they are masked.

const SENSITIVE = { inputs: 'sensitive' };

const setText = ([selector, text]) => { document.querySelector(selector).firstChild.data = text; };
const setHtml = ([selector, html]) => { document.querySelector(selector).innerHTML = html; };

const dynamic = [
  {
    name: 'dynamic-text',
    description: 'Text below the mask changes again and again, across a full snapshot.',
    async run(visit) {
      await visit.open(`<p id="o">${visit.keep()}</p><div data-clairvio-mask><p id="t">${visit.secret('snapshot')}</p></div>`);
      for (const label of ['one', 'two', 'three']) {
        await visit.flush();
        await visit.run(setText, ['#t', visit.secret(label)]);
      }
      await visit.flush();
      await visit.run(setText, ['#o', visit.keep('open')]);
      await visit.snapshotWith();
      for (const label of ['four', 'five', 'six']) {
        await visit.run(setText, ['#t', visit.secret(label)]);
        await visit.flush();
      }
      await visit.run(setText, ['#o', visit.keep('last')]);
    },
  },
  {
    name: 'dynamic-nodes-added',
    description: 'Nodes are added below the mask: beside others, deep below added ones, and to those in the next batch.',
    async run(visit) {
      await visit.open(`<p>${visit.keep()}</p><ul id="m" data-clairvio-mask><li>${visit.secret('first')}</li></ul>`);
      await visit.flush();
      await visit.run(([text, deep]) => {
        const item = document.createElement('li');
        item.id = 'i';
        item.innerHTML = `${text}<div><section><p id="d">${deep}</p></section></div>`;
        document.querySelector('#m').prepend(item);
      }, [visit.secret('added'), visit.secret('deep')]);
      await visit.flush();
      await visit.run((text) => { document.querySelector('#d').append(text); }, visit.secret('appended'));
      await visit.snapshotWith();
      await visit.run((html) => { document.querySelector('#i').insertAdjacentHTML('afterend', html); },
        `<li title="${visit.secret('title')}"><!-- ${visit.secret('comment')} --><input value="${visit.secret('value')}"></li>`);
      await visit.flush();
      await visit.run((text) => { document.querySelector('#d').append(text); }, visit.secret('again'));
    },
  },
  {
    name: 'dynamic-attributes',
    description: 'Attributes below the mask change: title, value, href, style, data-*.',
    async run(visit) {
      await visit.open(`<p>${visit.keep()}</p><div data-clairvio-mask><a id="a">x</a><input id="i"><p id="p">x</p></div>`);
      const change = async (selector, name, value) => {
        await visit.flush();
        await visit.run(([where, key, text]) => { document.querySelector(where).setAttribute(key, text); }, [selector, name, value]);
      };
      await change('#a', 'title', visit.secret('title'));
      await change('#a', 'href', `/order?q=${visit.secret('href')}`);
      await change('#i', 'value', visit.secret('value'));
      await change('#i', 'placeholder', visit.secret('placeholder'));
      await visit.snapshotWith();
      await change('#p', 'data-name', visit.secret('data'));
      await change('#p', 'style', `background: url("/photo.png?q=${visit.secret('style')}")`);
      await change('#p', 'aria-label', visit.secret('label'));
    },
  },
  {
    name: 'dynamic-moved-out',
    description: 'A masked element is moved into the open and recorded there anew: what was masked stays so. Its text is replaced before the next full snapshot.',
    async run(visit) {
      await visit.open(`<p>${visit.keep()}</p><div id="o"></div>
        <div id="m" data-clairvio-mask><section id="t"><p>${visit.secret()}</p></section></div>`);
      await visit.flush();
      await visit.run(() => { document.querySelector('#o').append(document.querySelector('#t')); });
      await visit.flush();
      await visit.run(setHtml, ['#o', '<p>x</p>']);
      await visit.snapshotWith();
    },
  },
  {
    name: 'dynamic-moved-in',
    description: 'An open element is moved below the mask, then its text, an attribute and its value change; secret is what it gets there.',
    async run(visit) {
      await visit.open(`<p>${visit.keep()}</p><div id="o"><section id="t"><p id="p">${visit.keep('before')}</p><input id="i"></section></div>
        <div id="m" data-clairvio-mask></div>`);
      await visit.flush();
      await visit.run(() => { document.querySelector('#m').append(document.querySelector('#t')); });
      await visit.flush();
      await visit.run(setText, ['#p', visit.secret('text')]);
      await visit.flush();
      await visit.run((text) => { document.querySelector('#p').title = text; }, visit.secret('title'));
      await visit.flush();
      await visit.type('#i', visit.secret('typed'));
      await visit.snapshotWith();
      await visit.run(setText, ['#p', visit.secret('later')]);
    },
  },
  {
    name: 'dynamic-moved-within',
    description: 'An element is moved from one masked element to another, then changes.',
    async run(visit) {
      await visit.open(`<p>${visit.keep()}</p><div data-clairvio-mask><p id="t">${visit.secret('given')}</p></div>
        <div id="n" data-clairvio-mask></div>`);
      await visit.flush();
      await visit.run(() => { document.querySelector('#n').append(document.querySelector('#t')); });
      await visit.flush();
      await visit.run(setText, ['#t', visit.secret('changed')]);
      await visit.snapshotWith();
    },
  },
  {
    name: 'dynamic-mask-set-late',
    description: 'The masking attribute is set on an element that was open before; secret is what comes below it after that.',
    async run(visit) {
      await visit.open(`<p>${visit.keep()}</p><div id="m"><p id="t">${visit.keep('before')}</p><input id="i"></div>`);
      await visit.flush();
      await visit.run(() => { document.querySelector('#m').setAttribute('data-clairvio-mask', ''); });
      await visit.flush();
      await visit.run(setText, ['#t', visit.secret('text')]);
      await visit.flush();
      await visit.type('#i', visit.secret('typed'));
      await visit.flush();
      await visit.run((text) => { document.querySelector('#m').insertAdjacentHTML('beforeend', `<p title="${text}">x</p>`); }, visit.secret('added'));
      await visit.snapshotWith();
      await visit.run(setText, ['#t', visit.secret('later')]);
    },
  },
  {
    name: 'dynamic-mask-set-with-text',
    description: 'The masking attribute and the text are set in the same moment, so that one event has both.',
    async run(visit) {
      await visit.open(`<p>${visit.keep()}</p><div id="m"><p id="t">x</p></div>`);
      await visit.flush();
      await visit.run((text) => {
        document.querySelector('#m').setAttribute('data-clairvio-mask', '');
        document.querySelector('#t').firstChild.data = text;
        document.querySelector('#t').title = text;
      }, visit.secret());
      await visit.snapshotWith();
    },
  },
  {
    name: 'dynamic-mask-added-with-element',
    description: 'An element comes with the masking attribute on it, and changes in later batches.',
    async run(visit) {
      await visit.open(`<p>${visit.keep()}</p><div id="o"></div>`);
      await visit.flush();
      await visit.run(setHtml, ['#o', `<div data-clairvio-mask><p id="t">${visit.secret('added')}</p><input id="i"></div>`]);
      await visit.flush();
      await visit.run(setText, ['#t', visit.secret('changed')]);
      await visit.flush();
      await visit.type('#i', visit.secret('typed'));
      await visit.snapshotWith();
      await visit.run(setText, ['#t', visit.secret('later')]);
    },
  },
  {
    name: 'dynamic-mask-removed',
    description: 'The masking attribute is removed: what came before stays masked, what comes after the next full snapshot is open.',
    async run(visit) {
      await visit.open(`<p>${visit.keep()}</p><div id="m" data-clairvio-mask><p id="t">${visit.secret('snapshot')}</p></div>`);
      await visit.flush();
      await visit.run(setText, ['#t', visit.secret('changed')]);
      await visit.flush();
      await visit.run(setText, ['#t', 'x']);
      await visit.run(() => { document.querySelector('#m').removeAttribute('data-clairvio-mask'); });
      await visit.snapshotWith();
      await visit.run(setText, ['#t', visit.keep('opened')]);
    },
  },
  {
    name: 'dynamic-class-set-late',
    description: 'An element gets a class that a selector of the link masks; secret is what comes after that.',
    rules: { inputs: 'sensitive', mask_selectors: ['.private'] },
    async run(visit) {
      await visit.open(`<p>${visit.keep()}</p><div id="m"><p id="t">${visit.keep('before')}</p></div>`);
      await visit.flush();
      await visit.run(() => { document.querySelector('#m').classList.add('private'); });
      await visit.flush();
      await visit.run(setText, ['#t', visit.secret('changed')]);
      await visit.flush();
      await visit.run((html) => { document.querySelector('#m').insertAdjacentHTML('beforeend', html); }, `<p>${visit.secret('added')}</p>`);
      await visit.snapshotWith();
      await visit.run(setText, ['#t', visit.secret('later')]);
    },
  },
  {
    name: 'dynamic-filled-before',
    description: 'Fields were filled in before recording began; the default rules mask them.',
    rules: {},
    async run(visit) {
      await visit.load(`<p>${visit.keep()}</p><input id="i"><textarea id="a"></textarea>`);
      await visit.type('#i', visit.secret('input'));
      await visit.type('#a', visit.secret('area'));
      await visit.start();
      await visit.flush();
      await visit.type('#i', visit.secret('more'));
    },
  },
  {
    name: 'dynamic-inner-html',
    description: 'The content of the masked element is replaced by innerHTML and textContent.',
    async run(visit) {
      await visit.open(`<p>${visit.keep()}</p><div id="m" data-clairvio-mask><p>${visit.secret('given')}</p></div>`);
      await visit.flush();
      await visit.run(setHtml, ['#m', `<p id="t">${visit.secret('html')}</p>`]);
      await visit.flush();
      await visit.run(setText, ['#t', visit.secret('changed')]);
      await visit.flush();
      await visit.run((text) => { document.querySelector('#m').textContent = text; }, visit.secret('text'));
      await visit.snapshotWith();
      await visit.run(setHtml, ['#m', `<b>${visit.secret('later')}</b>`]);
    },
  },
  {
    name: 'dynamic-removed-and-added-again',
    description: 'The masked element is taken out of the page, changed, and put back elsewhere; a child likewise.',
    async run(visit) {
      await visit.open(`<p>${visit.keep()}</p><div id="m" data-clairvio-mask><p id="t">${visit.secret('given')}</p></div><div id="o"></div>`);
      await visit.flush();
      await visit.run(() => {
        window.taken = document.querySelector('#m');
        window.taken.remove();
      });
      await visit.flush();
      await visit.run((text) => {
        window.taken.firstElementChild.firstChild.data = text;
        document.querySelector('#o').append(window.taken);
      }, visit.secret('back'));
      await visit.flush();
      await visit.run(setText, ['#t', visit.secret('changed')]);
      await visit.snapshotWith();
      await visit.run((text) => {
        const child = document.querySelector('#t');
        child.remove();
        child.firstChild.data = text;
        document.querySelector('#m').append(child);
      }, visit.secret('child'));
    },
  },
  {
    name: 'dynamic-list-drawn-anew',
    description: 'A list around the masked cells is drawn anew and sorted; open cells stand beside masked ones.',
    async run(visit) {
      const row = (label) => `<tr><td>${visit.keep(`open-${label}`)}</td><td data-clairvio-mask>${visit.secret(label)}</td></tr>`;
      await visit.open(`<table><tbody id="b">${row('one')}${row('two')}</tbody></table>`);
      await visit.flush();
      await visit.run(() => { const body = document.querySelector('#b'); body.append(body.firstElementChild); });
      await visit.flush();
      await visit.run(setHtml, ['#b', `${row('three')}${row('four')}`]);
      await visit.flush();
      await visit.run((html) => { document.querySelector('#b').insertAdjacentHTML('afterbegin', html); }, row('five'));
      await visit.snapshotWith();
      await visit.run((text) => { document.querySelector('#b').rows[0].cells[1].firstChild.data = text; }, visit.secret('changed'));
      await visit.flush();
      await visit.run((text) => { document.querySelector('#b').rows[0].cells[0].firstChild.data = text; }, visit.keep('changed'));
    },
  },
  {
    name: 'dynamic-text-split',
    description: 'Text nodes below the mask are split, put together again, and replaced one by one.',
    async run(visit) {
      await visit.open(`<p>${visit.keep()}</p><p id="t" data-clairvio-mask>x ${visit.secret('given')}</p>`);
      await visit.flush();
      await visit.run(() => { document.querySelector('#t').firstChild.splitText(2); });
      await visit.flush();
      await visit.run(() => { document.querySelector('#t').normalize(); });
      await visit.flush();
      await visit.run((text) => { document.querySelector('#t').firstChild.replaceWith(text); }, visit.secret('replaced'));
      await visit.snapshotWith();
      await visit.run((text) => { document.querySelector('#t').firstChild.appendData(text); }, visit.secret('appended'));
    },
  },
  {
    name: 'dynamic-typing-across-batches',
    description: 'Somebody types below the mask for a while: into a field, an area and an element that can be edited, with a snapshot amid it.',
    async run(visit) {
      await visit.open(`<p>${visit.keep()}</p><div data-clairvio-mask><input id="i"><textarea id="a"></textarea>
        <div id="e" contenteditable="true">x</div></div>`);
      for (const selector of ['#i', '#a', '#e']) {
        await visit.flush();
        await visit.type(selector, visit.secret(`first-${selector.slice(1)}`));
      }
      await visit.snapshotWith();
      for (const selector of ['#e', '#a', '#i']) {
        await visit.type(selector, visit.secret(`second-${selector.slice(1)}`));
        await visit.flush();
      }
    },
  },
  {
    name: 'dynamic-shadow-root',
    description: 'Below the mask a shadow root gets nodes, with another shadow root in it, batch by batch.',
    async run(visit) {
      await visit.open(`<p>${visit.keep()}</p><div data-clairvio-mask><div id="h"></div></div>`);
      await visit.flush();
      await visit.run((text) => {
        window.outer = document.querySelector('#h').attachShadow({ mode: 'open' });
        window.outer.innerHTML = `<p>${text}</p><div></div>`;
      }, visit.secret('outer'));
      await visit.flush();
      await visit.run((text) => {
        window.inner = window.outer.querySelector('div').attachShadow({ mode: 'open' });
        window.inner.innerHTML = `<p>${text}</p>`;
      }, visit.secret('inner'));
      await visit.flush();
      await visit.run((text) => { window.inner.firstChild.firstChild.data = text; }, visit.secret('changed'));
      await visit.snapshotWith();
      await visit.run((text) => { window.inner.firstChild.firstChild.data = text; }, visit.secret('later'));
    },
  },
  {
    name: 'dynamic-frame',
    description: 'A masked frame is changed batch by batch, loaded anew, and changed again.',
    async run(visit) {
      visit.serveFrame('/frame', `<p id="t">${visit.secret('loaded')}</p>`);
      const change = (text) => visit.run((value) => {
        document.querySelector('#f').contentDocument.querySelector('#t').firstChild.data = value;
      }, text);
      await visit.open(`<p>${visit.keep()}</p><div data-clairvio-mask><iframe id="f" src="/frame"></iframe></div>`);
      await visit.flush();
      await change(visit.secret('one'));
      await visit.flush();
      await visit.run(() => new Promise((done) => {
        const frame = document.querySelector('#f');
        frame.addEventListener('load', () => setTimeout(done, 100), { once: true });
        frame.contentWindow.location.reload();
      }));
      await visit.flush();
      await change(visit.secret('two'));
      await visit.snapshotWith();
      await change(visit.secret('three'));
    },
  },
  {
    name: 'dynamic-two-pages',
    description: 'Two streams of one session: numbers of nodes that are masked on the first page are open ones on the second.',
    async run(visit) {
      await visit.open(`<div data-clairvio-mask><p id="t">${visit.secret('first')}</p></div><p id="o">${visit.keep('first')}</p>`);
      await visit.flush();
      await visit.run(setText, ['#t', visit.secret('changed')]);
      await visit.end();
      await visit.open(`<div><p id="o">${visit.keep('second')}</p></div><p id="t" data-clairvio-mask>${visit.secret('second')}</p>`, { path: '/second-page' });
      await visit.flush();
      await visit.run(setText, ['#o', visit.keep('changed')]);
      await visit.flush();
      await visit.run(setText, ['#t', visit.secret('later')]);
    },
  },
  {
    name: 'dynamic-many-nodes',
    description: 'Thousands of masked elements among open ones, so that a small state may not hold them; some of them change in the next batches.',
    async run(visit) {
      const cells = Array.from({ length: 6000 }, (_, i) => `<i></i><b data-clairvio-mask>${i === 700 ? visit.secret('given') : 'x'}</b>`);
      await visit.open(`<p>${visit.keep()}</p><div id="o">${cells.join('')}</div>`);
      for (const [label, i] of [['first', 0], ['middle', 2999], ['last', 5999]]) {
        await visit.flush();
        await visit.run(([at, text]) => { document.querySelectorAll('#o b')[at].firstChild.data = text; }, [i, visit.secret(label)]);
      }
      await visit.run(setHtml, ['#o', '']);
      await visit.snapshotWith();
    },
  },
];

export const cases = dynamic.map((leak) => ({ class: 'dynamic', rules: SENSITIVE, ...leak }));
