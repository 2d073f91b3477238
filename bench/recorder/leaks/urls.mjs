// Secrets in the address of the page and in links. The address is in rrweb's
// Meta event and in the page event.

const SENSITIVE = { inputs: 'sensitive' };

const address = (name, description, suffix, options) => ({
  name,
  description,
  async run(visit) {
    await visit.open(`<p>${visit.keep()}</p>`, { suffix: suffix(visit), ...options?.(visit) });
    await visit.flush();
    await visit.snapshotWith();
  },
});

const urls = [
  address('url-query', 'Parameters of the page\'s address: one with a telling name, one without.',
    (visit) => `?token=${visit.secret('token')}&q=${visit.secret('search')}`),
  address('url-query-encoded', 'A parameter that is percent-encoded.',
    (visit) => `?q=${encodeURIComponent(visit.plant(`LEAK Ada Lindqvist & Söner ${visit.secret('end')}`))}`),
  address('url-fragment', 'A fragment with parameters.',
    (visit) => `#state=${visit.secret('state')}&id_token=${visit.secret('token')}`),
  address('url-access-token', 'An access token in the fragment, as OAuth\'s implicit grant answers.',
    (visit) => `#access_token=${visit.jwt()}&token_type=bearer`),
  address('url-oauth-code', 'A code and a state, as OAuth answers.',
    (visit) => `?code=${visit.secret('code')}&state=${visit.secret('state')}`),
  address('url-route-query', 'Parameters behind a route in the fragment.',
    (visit) => `#/reset?reset_token=${visit.secret('token')}`),
  address('url-path-token', 'A token in the path.', () => '', (visit) => ({ path: `/reset/${visit.jwt()}` })),
  {
    name: 'url-user-info',
    description: 'A user and a password before the host: in the page event, a link and an image\'s address. Chromium leaves them out of location.href.',
    async run(visit) {
      await visit.open(`<p>${visit.keep()}</p><a href="http://ada:${visit.secret('link')}@harbor-oak.test/x">x</a>
        <img width="20" height="20" src="http://ada:${visit.secret('image')}@elsewhere.test/x.png">`);
      await visit.flush();
      await visit.run((text) => {
        window.rrweb.record.addCustomEvent('clairvio/page', { href: `http://ada:${text}@harbor-oak.test/x` });
      }, visit.secret('page'));
      await visit.snapshotWith();
    },
  },
  {
    name: 'url-user-info-of-page',
    description: 'The page is opened with a user and a password: location.href has none, but rrweb makes relative links absolute with them.',
    async run(visit) {
      const password = visit.secret('password');
      await visit.open(`<p>${visit.keep()}</p><a id="a" href="/x">x</a><p style="background: url(photo.png)">y</p>`,
        { at: `http://ada:${password}@harbor-oak.test` });
      await visit.flush();
      await visit.run(() => { document.querySelector('#a').href = '/y'; });
      await visit.snapshotWith();
    },
  },
  {
    name: 'url-push-state',
    description: 'The address changes by history.pushState, then comes a full snapshot with its Meta event.',
    async run(visit) {
      await visit.open(`<p>${visit.keep()}</p>`);
      await visit.flush();
      await visit.run((text) => { history.pushState({}, '', `?q=${text}`); }, visit.secret('query'));
      await visit.snapshotWith('first');
      await visit.run((text) => { history.pushState({}, '', `#access_token=${text}`); }, visit.secret('fragment'));
      await visit.snapshotWith('second');
    },
  },
  {
    name: 'url-links',
    description: 'Links with secret parameters outside of masked elements: reset tokens, signatures, keys; in the snapshot and set later.',
    async run(visit) {
      await visit.open(`<p>${visit.keep()}</p><a id="a" href="/reset?reset_token=${visit.secret('reset')}&page=${visit.keep('page')}">x</a>
        <img width="20" height="20" src="/photo.png?api_key=${visit.secret('key')}">
        <form action="/send?access_token=${visit.secret('action')}"></form>`);
      await visit.flush();
      await visit.run((text) => { document.querySelector('#a').href = `/reset?reset_token=${text}`; }, visit.secret('changed'));
      await visit.snapshotWith();
    },
  },
  {
    name: 'url-in-styles',
    description: 'Secret parameters of URLs in a style attribute and in a style sheet outside of masked elements.',
    async run(visit) {
      await visit.open(`<p style="background: url('/photo.png?access_token=${visit.secret('attribute')}')">${visit.keep()}</p>
        <style>.x { background-image: url("/photo.png?access_token=${visit.secret('sheet')}"); content: "${visit.keep('content')}"; }</style>`);
      await visit.flush();
      await visit.snapshotWith();
    },
  },
  {
    name: 'url-made-absolute',
    description: 'Links without a path of their own: rrweb makes them absolute with the page\'s address, which has a secret.',
    async run(visit) {
      await visit.open(`<p>${visit.keep()}</p><a href="#top">x</a><a href="">y</a><svg width="9" height="9"><use href="#s"/></svg>
        <p style="background: url(photo.png)">z</p>`, { suffix: `?token=${visit.secret('token')}` });
      await visit.flush();
      await visit.snapshotWith();
    },
  },
];

export const cases = urls.map((leak) => ({ class: 'url', rules: SENSITIVE, ...leak }));
