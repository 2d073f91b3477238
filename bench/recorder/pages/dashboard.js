const MAX_ROWS = 60;
const table = byId('orders');

const stateLabel = (state) => el('span', { class: `state ${state}` }, state);

function orderRow(order) {
  return el('tr', {},
    el('td', {}, order.number),
    el('td', { 'data-clairvio-mask': '' }, order.customer),
    el('td', {}, order.city),
    el('td', {}, order.item),
    el('td', { class: 'number' }, order.pieces),
    el('td', { class: 'number' }, euros(order.total)),
    el('td', {}, stateLabel(order.state)),
    el('td', { class: 'number' }, `${order.minutes} min`));
}

const TILES = {
  revenue: ['Revenue today', (value) => euros(value)],
  open_orders: ['Open orders', String],
  visitors: ['Visitors now', String],
  conversion: ['Conversion', (value) => `${value} %`],
};
byId('tiles').append(...Object.entries(TILES).map(([name, [title]]) =>
  el('div', { class: 'card tile' }, el('p', { class: 'hint' }, title), el('p', { class: 'figure', id: `tile-${name}` }, '–'))));

function showMetrics(metrics) {
  for (const [name, value] of Object.entries(metrics)) {
    byId(`tile-${name}`).textContent = TILES[name][1](value);
  }
}

const chart = byId('load-chart');
for (let y = 20; y <= 240; y += 44) {
  chart.append(svg('line', { x1: 0, x2: 900, y1: y, y2: y, class: 'grid-line' }));
}
const loadArea = chart.appendChild(svg('path', { class: 'area' }));
const loadLine = chart.appendChild(svg('path', { class: 'line' }));

function showLoad(load) {
  const points = load.map((value, i) => `${(i * 900 / (load.length - 1)).toFixed(1)},${(250 - value * 3).toFixed(1)}`);
  loadLine.setAttribute('d', `M${points.join('L')}`);
  loadArea.setAttribute('d', `M0,250L${points.join('L')}L900,250Z`);
}

function showSplit() {
  const counts = {};
  for (const label of table.querySelectorAll('.state')) {
    counts[label.textContent] = (counts[label.textContent] ?? 0) + 1;
  }
  byId('split-chart').replaceChildren(...Object.entries(counts).flatMap(([state, count], i) => [
    svg('rect', { x: 120, y: 20 + i * 38, width: count * 30, height: 26, rx: 3, class: `bar ${state}` }),
    svg('text', { x: 0, y: 38 + i * 38 }, state),
    svg('text', { x: 130 + count * 30, y: 38 + i * 38 }, count),
  ]));
}

function show(update) {
  showMetrics(update.metrics);
  showLoad(update.load);
  showSplit();
  byId('updated').textContent = new Date().toLocaleTimeString('en-GB');
}

async function tick() {
  const update = await getJson('/api/orders/tick');
  for (const { row, state, minutes } of update.changes) {
    const cells = table.rows[row].cells;
    cells[6].replaceChildren(stateLabel(state));
    cells[7].textContent = `${minutes} min`;
    table.rows[row].classList.add('changed');
    setTimeout((changed) => changed.classList.remove('changed'), 600, table.rows[row]);
  }
  for (const order of update.arrived) {
    table.prepend(orderRow(order));
    while (table.rows.length > MAX_ROWS) table.lastElementChild.remove();
  }
  show(update);
}

for (const tab of document.querySelectorAll('.tab')) {
  tab.addEventListener('click', () => {
    for (const other of document.querySelectorAll('.tab')) {
      other.setAttribute('aria-selected', other === tab);
      byId(`panel-${other.dataset.panel}`).hidden = other !== tab;
    }
  });
}

async function start() {
  const first = await getJson('/api/orders');
  table.append(...first.orders.map(orderRow));
  show(first);
  setInterval(tick, 1000);
}
start();
