// Secrets that only their shape or their name gives away: in console output,
// in custom events, in events of a plugin that nobody knows.

const SENSITIVE = { inputs: 'sensitive' };

const SCRIPT = `
function say(...values) { console.log(...values); }
function fail(text) { setTimeout(() => { throw new Error(text); }); }
function complain(text) { console.error(new Error(text)); }
`;

const logs = (name, description, work, options) => ({
  class: 'console',
  name,
  description,
  async run(visit) {
    visit.serve('/app.js', { contentType: 'text/javascript', body: SCRIPT });
    const { head = '<script src="/app.js"></script>', ...rest } = options?.(visit) ?? {};
    await visit.open(`<p>${visit.keep()}</p>`, { head, ...rest });
    await visit.flush();
    await work(visit);
    await visit.snapshotWith();
  },
});

const say = (visit, ...values) => visit.run((list) => window.say(...list), values);

const consoleCases = [
  logs('console-token', 'A token as an argument, alone and in a sentence.', async (visit) => {
    await say(visit, visit.jwt('alone'), visit.keep('argument'));
    await visit.flush();
    await say(visit, `${visit.keep('sentence')} signed in with ${visit.jwt('within')} just now`);
  }),
  logs('console-bearer', 'Credentials as in a header.', async (visit) => {
    await say(visit, `Authorization: Bearer ${visit.bearer()}`);
    await visit.flush();
    await say(visit, visit.keep('argument'), { headers: { authorization: `Basic ${visit.bearer('basic')}` } });
  }),
  logs('console-card', 'Card numbers with spaces, with dashes and without.', async (visit) => {
    await say(visit, `${visit.keep('sentence')} charged ${visit.card('spaces')}`);
    await visit.flush();
    await say(visit, `card ${visit.card('dashes', '-')} or ${visit.card('plain', '')}.`);
  }),
  logs('console-object', 'An object with a password, which the plugin writes as JSON in a string.', async (visit) => {
    await say(visit, { city: visit.keep('city'), password: visit.secret('password'), deep: { apiKey: visit.secret('key') } });
    await visit.flush();
    await say(visit, JSON.stringify({ city: visit.keep('json'), client_secret: visit.secret('twice') }));
  }),
  logs('console-pair', 'Names and values in prose.', (visit) => say(visit,
    `${visit.keep('sentence')} password=${visit.secret('equals')} and access_token: ${visit.secret('colon')}`)),
  logs('console-url', 'A URL with a secret parameter in a message.', (visit) => say(visit,
    `${visit.keep('sentence')} GET http://harbor-oak.test/x?access_token=${visit.secret('token')} 404`)),
  logs('console-stack', 'The address of a script with a secret parameter in the stack of an error and in the trace of a message.',
    async (visit) => {
      await say(visit, visit.keep('argument'));
      await visit.flush();
      await visit.run((text) => window.complain(text), visit.keep('error'));
    },
    (visit) => ({ head: `<script src="/app.js?token=${visit.secret('script')}"></script>` })),
  logs('console-stack-of-page', 'The script stands in the page, so that traces have the page\'s address with its query.',
    (visit) => say(visit, visit.keep('argument')),
    (visit) => ({ head: `<script>${SCRIPT}</script>`, suffix: `?token=${visit.secret('page')}` })),
  logs('console-uncaught', 'An uncaught error and a rejection with tokens in their messages.', async (visit) => {
    await visit.run((text) => window.fail(text), `login failed: ${visit.jwt('error')}`);
    await visit.flush();
    await visit.run((text) => { Promise.reject(new Error(text)); }, `no session for ${visit.jwt('rejection')}`);
  }),
];

const records = (name, description, work) => ({
  class: 'custom',
  name,
  description,
  async run(visit) {
    await visit.open(`<p>${visit.keep()}</p>`);
    await visit.flush();
    await work(visit);
    await visit.snapshotWith();
  },
});

const custom = (visit, tag, payload) => visit.run(
  ([name, value]) => { window.rrweb.record.addCustomEvent(name, value); }, [tag, payload],
);
const thing = (visit, payload) => visit.run((value) => window.leaks.emitThing(value), payload);

const deep = (visit) => ({
  step: visit.keep('step'),
  list: [1, null, true, { more: [{ token_of: 'x', note: `see ${visit.jwt()} please` }] }],
  log: `Authorization: Bearer ${visit.bearer()}`,
  paid: { by: { number: visit.card('spaces'), other: visit.card('plain', '') } },
});

const customCases = [
  records('custom-deep', 'A custom event with a token, a bearer and card numbers deep in it.',
    (visit) => custom(visit, 'checkout', deep(visit))),
  records('custom-by-name', 'A custom event with a password and other secret names.',
    (visit) => custom(visit, 'payload', {
      city: visit.keep('city'), password: visit.secret('password'), nested: { 'api-key': visit.secret('key'), refreshToken: visit.secret('token') },
    })),
  records('custom-text', 'Custom events whose payload is a text or a list.', async (visit) => {
    await custom(visit, 'text', `${visit.keep('text')} with ${visit.jwt()}`);
    await visit.flush();
    await custom(visit, 'list', [visit.keep('list'), [`password=${visit.secret('pair')}`]]);
  }),
  records('custom-key-as-secret', 'A token as the name of a field, and as the tag of an event.', async (visit) => {
    await custom(visit, 'map', { [visit.jwt('name')]: 1, city: visit.keep('city') });
    await visit.flush();
    await custom(visit, visit.jwt('tag'), { city: visit.keep('tag') });
  }),
  records('plugin-unknown', 'An event of an unknown plugin with a token, a bearer and card numbers deep in it.',
    (visit) => thing(visit, deep(visit))),
  records('plugin-unknown-by-name', 'An event of an unknown plugin with secret names and a URL.',
    (visit) => thing(visit, {
      city: visit.keep('city'),
      password: visit.secret('password'),
      cookie: `sid=${visit.secret('cookie')}`,
      at: `http://ada:${visit.secret('user-info')}@harbor-oak.test/x?access_token=${visit.secret('parameter')}`,
    })),
];

export const cases = [...consoleCases, ...customCases].map((leak) => ({ rules: SENSITIVE, ...leak }));
