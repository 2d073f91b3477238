// Invented goods and orders of the recorded web shop.

import { makeRandom } from './random.mjs';

const KINDS = {
  Chairs: ['dining chair', 'armchair', 'rocking chair', 'bar stool', 'bench'],
  Tables: ['dining table', 'side table', 'writing desk', 'coffee table', 'console'],
  Storage: ['sideboard', 'bookcase', 'chest of drawers', 'wardrobe', 'wall shelf'],
  Lighting: ['floor lamp', 'table lamp', 'pendant', 'wall light', 'lantern'],
  Textiles: ['wool throw', 'linen cushion', 'rug', 'curtain', 'bedspread'],
};
const SERIES = ['Alder', 'Birk', 'Cove', 'Dune', 'Ember', 'Fjell', 'Gull', 'Heron', 'Inlet', 'Juniper', 'Kelp', 'Larch'];
const FINISHES = ['oiled oak', 'smoked oak', 'walnut', 'white ash', 'black stain', 'natural beech', 'sand', 'moss green'];
const CARE = [
  'Wipe with a damp cloth and dry at once.',
  'Oil twice a year with the bottle that comes along.',
  'Keep away from direct sunlight for the first weeks.',
  'Screws may be tightened again after a month.',
];
const PRAISE = [
  'Made by hand in a workshop of nine people near the coast.',
  'The joints are glued and pegged, there is no metal in them.',
  'Ships flat and goes together with a single key.',
  'Every piece differs a little in grain and colour.',
  'Tested for twenty thousand openings, so it should outlive the house.',
];

export function makeCatalogue() {
  const random = makeRandom(20817);
  const products = [];
  for (let id = 1; id <= 600; id += 1) {
    const category = random.pick(Object.keys(KINDS));
    const finish = random.pick(FINISHES);
    products.push({
      id,
      sku: `HO-${category.slice(0, 2).toUpperCase()}-${1000 + id}`,
      title: `${random.pick(SERIES)} ${random.pick(KINDS[category])}`,
      category,
      finish,
      price: random.int(19, 899) + 0.9,
      rating: Math.round(random.between(2.8, 5) * 10) / 10,
      reviews: random.int(3, 412),
      stock: random.int(0, 40),
      delivery_days: random.int(2, 21),
      text: `${random.pick(PRAISE)} ${random.pick(PRAISE)} ${random.pick(CARE)}`,
      size: `${random.int(30, 220)} × ${random.int(30, 100)} × ${random.int(40, 210)} cm`,
    });
  }

  const sorters = {
    price: (a, b) => a.price - b.price,
    rating: (a, b) => b.rating - a.rating,
    name: (a, b) => a.title.localeCompare(b.title),
  };

  return {
    products,
    byId: (id) => products.find((product) => product.id === id),
    related: (product) => products.filter((other) =>
      other.category === product.category && other.id !== product.id).slice(0, 6),
    search(query) {
      const categories = query.getAll('category');
      const most = Number(query.get('max') ?? Infinity);
      const words = (query.get('q') ?? '').toLowerCase();
      const found = products.filter((product) =>
        (categories.length === 0 || categories.includes(product.category))
        && product.price <= most
        && (query.get('in_stock') !== '1' || product.stock > 0)
        && `${product.title} ${product.finish}`.toLowerCase().includes(words));
      const sorter = sorters[query.get('sort')];
      return sorter ? found.toSorted(sorter) : found;
    },
    // A few pieces are sold or come in; the shop page shows it on open cards.
    stockTick() {
      return Array.from({ length: 12 }, () => {
        const product = products[random.int(0, 59)];
        product.stock = Math.max(0, product.stock + random.int(-2, 1));
        return { id: product.id, stock: product.stock };
      });
    },
  };
}

const FIRST = ['Maja', 'Omar', 'Ines', 'Jonas', 'Priya', 'Luca', 'Wanda', 'Tomasz', 'Aiko', 'Femi'];
const LAST = ['Berg', 'Okafor', 'Duarte', 'Novak', 'Rao', 'Rossi', 'Kaminska', 'Sato', 'Haddad', 'Lund'];
const STATES = ['new', 'paid', 'packed', 'shipped', 'delivered', 'returned'];

export function makeOrders(catalogue) {
  const random = makeRandom(5);
  let number = 90100;
  const makeOrder = () => ({
    number: `HO-${number += 1}`,
    customer: `${random.pick(FIRST)} ${random.pick(LAST)}`,
    city: random.pick(['Malmö', 'Gdańsk', 'Porto', 'Utrecht', 'Bergen', 'Lyon', 'Graz']),
    item: random.pick(catalogue.products).title,
    pieces: random.int(1, 6),
    total: random.int(19, 2400) + 0.9,
    state: random.pick(STATES),
    minutes: random.int(0, 180),
  });
  const load = Array.from({ length: 90 }, (_, i) => 40 + 15 * Math.sin(i / 9) + random.between(-6, 6));

  const metrics = () => ({
    revenue: Math.round(random.between(18200, 18900)),
    open_orders: random.int(140, 160),
    visitors: random.int(310, 365),
    conversion: Math.round(random.between(2.1, 2.9) * 100) / 100,
  });
  const advance = () => {
    load.shift();
    load.push(40 + 15 * Math.sin(Date.now() / 9000) + random.between(-6, 6));
    return load.map((value) => Math.round(value * 10) / 10);
  };

  return {
    recent: () => ({
      orders: Array.from({ length: 60 }, makeOrder),
      metrics: metrics(),
      load: advance(),
    }),
    // What changed since the last poll. `changes` addresses rows by position.
    tick: () => ({
      arrived: random.next() < 0.5 ? [makeOrder()] : [],
      changes: Array.from({ length: random.int(3, 8) }, () => ({
        row: random.int(0, 59),
        state: random.pick(STATES),
        minutes: random.int(0, 180),
      })),
      metrics: metrics(),
      load: advance(),
    }),
  };
}
