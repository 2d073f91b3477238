// Secrets in recorded requests. Each request is recorded twice: in full under
// rrweb's name, and as a line with its query like the SDK's.

const SENSITIVE = { inputs: 'sensitive' };
const WITH_BODIES = { inputs: 'sensitive', network_bodies: true };

const JSON_TYPE = { 'Content-Type': 'application/json' };

const request = ([kind, url, init]) => {
  if (kind === 'fetch') return fetch(url, init).then((response) => response.text()).then(() => {});
  return new Promise((done) => {
    const xhr = new XMLHttpRequest();
    xhr.open(init?.method ?? 'GET', url);
    for (const [name, value] of Object.entries(init?.headers ?? {})) xhr.setRequestHeader(name, value);
    xhr.addEventListener('loadend', done);
    xhr.send(init?.body);
  });
};

// The same request by fetch and by XMLHttpRequest, in batches of their own.
// `make` gives its URL, what is sent, and what the site answers.
const sends = (name, description, make, rules = SENSITIVE) => ({
  name,
  description,
  rules,
  async run(visit) {
    const path = `/api/${visit.keep('path')}`;
    const { url = '', init = {}, answer = {}, cookie, at = path } = make(visit);
    visit.serve(at, { contentType: 'application/json', body: '{"ok":true}', ...answer });
    await visit.open(`<p>${visit.keep()}</p>`);
    if (cookie) await visit.run((text) => { document.cookie = text; }, cookie);
    await visit.flush();
    await visit.run(request, ['fetch', at + url, init]);
    await visit.flush();
    await visit.run(request, ['xhr', at + url, init]);
    if (at !== path) await visit.run(request, ['fetch', path, {}]);
    await visit.snapshotWith();
  },
});

const emits = (name, description, make, rules = SENSITIVE) => ({
  name,
  description,
  rules,
  async run(visit) {
    await visit.open(`<p>${visit.keep()}</p>`);
    await visit.flush();
    await visit.run((requests) => window.leaks.emitRequests(requests), make(visit));
    await visit.snapshotWith();
  },
});

const network = [
  sends('network-query', 'Parameters of a request: one with a telling name, one without.',
    (visit) => ({ url: `?api_key=${visit.secret('key')}&q=${visit.secret('search')}` })),
  sends('network-fragment', 'Parameters in the fragment of a request\'s address.',
    (visit) => ({ url: `#access_token=${visit.secret('token')}` })),
  sends('network-authorization', 'The header Authorization, with a bearer and with a user\'s password.',
    (visit) => ({ init: { headers: { Authorization: `Bearer ${visit.secret('bearer')}`, 'Proxy-Auth': `Basic ${visit.bearer('basic')}` } } })),
  sends('network-cookie', 'The header Cookie.',
    (visit) => ({ cookie: `sid=${visit.secret('session')}` })),
  emits('network-set-cookie', 'The headers Set-Cookie and Cookie, as an extension would record them.',
    (visit) => [{
      url: `http://harbor-oak.test/${visit.keep('path')}`,
      method: 'GET',
      status: 200,
      requestHeaders: { cookie: `a=1; sid=${visit.secret('cookie')}` },
      responseHeaders: { 'set-cookie': `sid=${visit.secret('set')}; Path=/; HttpOnly` },
      requestBody: null,
      responseBody: null,
      startTime: 100.5,
      endTime: 120.5,
    }]),
  sends('network-api-key', 'Keys in headers of the page\'s own.',
    (visit) => ({
      init: { headers: { 'X-Api-Key': visit.secret('key'), 'X-CSRF-Token': visit.secret('csrf'), 'X-Auth-Token': visit.secret('auth') } },
      answer: { headers: { 'X-Access-Token': visit.secret('answer') } },
    })),
  sends('network-bearer-elsewhere', 'A bearer and a token by shape in headers with names that say nothing.',
    (visit) => ({ init: { headers: { 'X-Upstream': `Bearer ${visit.bearer()}`, 'X-Context': visit.jwt() } } })),
  sends('network-token-in-path', 'A token in the path of a request.',
    (visit) => ({ at: `/api/share/${visit.jwt()}/download` })),
  sends('network-bodies-off', 'Without the rule for bodies nothing of them is stored, secret or not.',
    (visit) => ({
      init: { method: 'POST', headers: JSON_TYPE, body: JSON.stringify({ note: visit.secret('request') }) },
      answer: { body: JSON.stringify({ note: visit.secret('answer') }) },
    })),
  sends('network-request-json', 'A password and nested secrets in a JSON body; the rest of the body stays.',
    (visit) => ({
      init: {
        method: 'POST',
        headers: JSON_TYPE,
        body: JSON.stringify({
          user: { city: visit.keep('city'), password: visit.secret('password'), newPassword: [visit.secret('list')] },
          note: visit.keep('note'),
          card: visit.card('card'),
          secret: { anything: visit.secret('below') },
        }),
      },
    }), WITH_BODIES),
  sends('network-request-form', 'A form-encoded body with a password; the rest of the body stays.',
    (visit) => ({
      init: {
        method: 'POST',
        headers: { 'Content-Type': 'application/x-www-form-urlencoded' },
        body: `city=${visit.keep('city')}&password=${visit.secret('password')}&user%5Bpassword_confirmation%5D=${visit.secret('nested')}`,
      },
    }), WITH_BODIES),
  sends('network-response-json', 'Tokens in a JSON answer; the rest of the answer stays.',
    (visit) => ({
      answer: {
        body: JSON.stringify({
          access_token: visit.secret('access'), refresh_token: visit.secret('refresh'), id: visit.jwt('id'), city: visit.keep('city'),
        }),
      },
    }), WITH_BODIES),
  sends('network-json-in-json', 'JSON in a string of a JSON body, and JSON that is not complete.',
    (visit) => ({
      init: {
        method: 'POST',
        headers: JSON_TYPE,
        body: JSON.stringify({ note: visit.keep('note'), inner: JSON.stringify({ password: visit.secret('inner') }) }),
      },
      answer: { body: `{"city":"x","password":"${visit.secret('cut')}","rest":{"a":` },
    }), WITH_BODIES),
  sends('network-redact-keys', 'Names that the link adds, as parameter, header and field of a body.',
    (visit) => ({
      url: `?customer_no=${visit.secret('parameter')}`,
      init: {
        method: 'POST',
        headers: { ...JSON_TYPE, 'Customer-No': visit.secret('header') },
        body: JSON.stringify({ order: { customer_no: visit.secret('field'), customerNo: visit.secret('camel'), city: visit.keep('city') } }),
      },
    }), { ...WITH_BODIES, redact_keys: ['customer_no'] }),
  emits('network-other-shapes', 'Headers as pairs and as a list of names and values; a body that is an object.',
    (visit) => [
      {
        url: `http://harbor-oak.test/${visit.keep('path')}`,
        method: 'POST',
        status: 200,
        requestHeaders: [['Authorization', `Bearer ${visit.secret('pair')}`]],
        responseHeaders: [{ name: 'Set-Cookie', value: `sid=${visit.secret('entry')}` }],
        requestBody: { password: visit.secret('object') },
        responseBody: { note: visit.secret('note') },
        startTime: 100,
      },
      { name: `http://ada:${visit.secret('user-info')}@harbor-oak.test/x?token=${visit.secret('name')}`, entryType: 'resource', startTime: 7 },
    ]),
];

export const cases = network.map((leak) => ({ class: 'network', ...leak }));
