// What the recorded people do. Each session gets a fresh browser context and
// returns when the person is done; the recorder then leaves the open pages.

import { setTimeout as sleep } from 'node:timers/promises';

import { Person } from './person.mjs';
import { EMAIL, MISTYPED_PASSWORD, PASSWORD, PERSON } from './typed.mjs';

// A reserved name, resolved to the local server inside the browser. It keeps
// the recordings free of port numbers.
export const ORIGIN = 'http://harbor-oak.test';

async function open(context, path, seed) {
  const page = await context.newPage();
  await page.goto(ORIGIN + path);
  return new Person(page, seed);
}

async function signIn(person) {
  await person.type('[name=email]', EMAIL);
  await person.type('#password', PASSWORD);
  await person.click('#login-submit');
  await person.page.waitForURL('**/account');
}

async function loginShort(context) {
  const person = await open(context, '/login', 11);
  await person.read(1500);
  await person.type('[name=email]', EMAIL);
  await person.type('#password', MISTYPED_PASSWORD);
  await person.click('#login-submit');
  await person.page.locator('#login-error').waitFor();
  await person.read(1200);
  await person.clear('#password');
  await person.click('#show-password');
  await person.type('#password', PASSWORD);
  await person.click('#show-password');
  await person.click('[name=remember]');
  await person.click('#login-submit');
  await person.page.waitForURL('**/account');
  await person.read(3000);
  await person.click('#more-orders');
  await person.read(2000);
}

async function ticketForm(context) {
  const person = await open(context, '/support', 12);
  await person.read(2000);
  // Sends too early once, to record the validation messages.
  await person.click('#ticket-submit');
  await person.read(1500);
  await person.type('[name=name]', PERSON.name);
  await person.type('[name=email]', EMAIL);
  await person.type('[name=phone]', PERSON.phone);
  await person.type('[name=order]', PERSON.orderNumber);
  await person.choose('[name=topic]', 'damaged');
  await person.setDate('[name=delivered]', '2025-05-06');
  await person.setDate('[name=born]', PERSON.born);
  await person.clear('[name=pieces]');
  await person.type('[name=pieces]', '2');
  await person.type('[name=message]', PERSON.message);
  await person.click('[name=urgency][value=high]');
  await person.click('[name=by][value=phone]');
  await person.click('[name=by][value=mail]');
  await person.type('[name=passphrase]', PERSON.passphrase);
  await person.slide('[name=content]', 3, 'ArrowLeft');
  await person.click('#ticket-submit');
  await person.page.locator('#ticket-done').waitFor();
  await person.read(3500);
  await person.click('#ticket-done .button');
  await person.page.waitForURL('**/account');
  await person.read(2500);
}

async function browseShop(person, screens) {
  for (let i = 0; i < screens; i += 1) {
    await person.wheel(person.random.int(6, 12) * 100);
    await person.read(person.random.between(300, 1400));
  }
}

async function shopLongScroll(context) {
  const person = await open(context, '/shop', 13);
  const { page } = person;
  await person.read(2500);
  await browseShop(person, 20);
  await person.click(page.locator('.product .add').nth(98));
  await browseShop(person, 12);
  await person.click(page.locator('.product .add').nth(130));
  await person.wheel(-1200);
  await person.click('#cart-open');
  await person.read(2000);
  await person.click('#cart-close');

  await person.click('[name=category][value=Storage]');
  await person.click('[name=category][value=Tables]');
  await person.slide('[name=max]', 6, 'ArrowLeft');
  await person.read(1500);
  await browseShop(person, 8);
  await person.choose('[name=sort]', 'rating');
  await person.read(1500);
  await browseShop(person, 5);

  await person.click(page.locator('.product h3 a').nth(20));
  await page.waitForURL('**/product*');
  await person.read(3000);
  await person.click('#add-piece');
  await person.wheel(700);
  await person.read(1500);
  await person.click(page.locator('#related h3 a').nth(2));
  await page.waitForURL('**/product*');
  await person.read(2500);

  await person.click('.crumbs a');
  await page.waitForURL('**/shop');
  await person.read(1000);
  await person.type('[name=q]', 'lamp');
  await person.read(1500);
  await page.setViewportSize({ width: 1024, height: 760 });
  await browseShop(person, 4);
  await person.click(page.locator('.product .add').nth(8));
  await person.click('#cart-open');
  await person.read(1500);
  await person.click('#cart-checkout');
  await page.waitForURL('**/login');
  await person.read(1500);
}

async function dashboardLive(context) {
  const person = await open(context, '/dashboard', 14);
  const { page } = person;
  await person.read(10000);
  await person.point('#orders-scroll');
  await person.wheel(900);
  await person.read(6000);
  await person.wheel(-900);
  await person.click('[data-panel=load]');
  await person.read(14000);
  await page.setViewportSize({ width: 860, height: 720 });
  await person.read(5000);
  await page.setViewportSize({ width: 1280, height: 800 });
  await person.click('[data-panel=split]');
  await person.read(10000);
  await person.click('[data-panel=orders]');
  await person.read(45000);
}

async function errorsNetwork(context) {
  const person = await open(context, '/import', 15);
  await person.read(1500);
  await person.type('#note', PERSON.importNote);
  await person.click('#load-template');
  await person.read(1200);
  await person.click('#map-columns');
  await person.read(1500);
  await person.click('#map-columns');
  await person.read(1000);
  await person.click('#validate');
  await person.read(4500);
  await person.click('#commit');
  await person.read(1500);
  await person.click('#commit');
  await person.read(1500);
  await person.click('#report');
  await person.read(3000);
  await person.click('#cancel-report');
  await person.read(1500);
  await person.click('#load-template');
  // Leaves the page with a slow request still open.
  await person.click('#report');
  await person.pause(600);
  await person.click('#nav-help');
  await person.page.waitForURL('**/help');
  await person.read(2000);
}

async function iframeShadow(context) {
  const person = await open(context, '/help', 16);
  const { page } = person;
  const chat = page.frameLocator('#chat');
  await person.read(2000);
  for (const nth of [0, 1, 2]) {
    await person.click(page.locator('faq-item button').nth(nth));
    await person.read(1500);
  }
  await person.type(chat.locator('[name=question]'), PERSON.chatQuestion);
  await person.click(chat.locator('button'));
  await person.read(6000);
  await person.click(page.locator('star-rating .star').nth(2));
  await person.read(800);
  await person.click(page.locator('star-rating .star').nth(3));
  await person.type(page.locator('star-rating textarea'), PERSON.secondMessage);
  await person.read(1500);
}

async function twoTabs(context) {
  const shop = await open(context, '/shop', 17);
  await shop.read(1500);
  await browseShop(shop, 4);
  const opened = context.waitForEvent('page');
  await shop.click('#nav-support');
  const supportPage = await opened;
  await supportPage.waitForLoadState();
  const support = new Person(supportPage, 18);

  await support.read(1500);
  await support.type('[name=name]', PERSON.name);
  await support.type('[name=email]', EMAIL);
  // Looks something up in the shop and comes back, while the shop keeps
  // updating its stock figures in the other tab.
  await shop.page.bringToFront();
  await browseShop(shop, 4);
  await supportPage.bringToFront();
  await support.choose('[name=topic]', 'missing');
  await support.type('[name=message]', PERSON.secondMessage);
  await shop.page.bringToFront();
  await shop.click(shop.page.locator('.product .add').nth(30));
  await shop.read(1500);
  await supportPage.bringToFront();
  await support.click('#ticket-submit');
  await supportPage.locator('#ticket-done').waitFor();
  await support.read(1500);
  await supportPage.goto('about:blank');
  await shop.page.bringToFront();
  await shop.click('#cart-open');
  await shop.read(3000);
}

async function idleLong(context) {
  const person = await open(context, '/login', 19);
  await signIn(person);
  await person.read(3000);
  await sleep(75000);
  await person.read(2500);
  await sleep(110000);
  await person.click('#more-orders');
  await person.read(2500);
}

// Longest first: the recorder runs several at a time.
export const SESSIONS = [
  { name: 'idle-long', description: 'Signs in, then leaves the account page open and mostly untouched.', run: idleLong },
  { name: 'shop-long-scroll', description: 'Scrolls far through an endless product list, filters, opens products, fills the cart.', run: shopLongScroll },
  { name: 'dashboard-live', description: 'Watches a dashboard whose table and chart update every second; tabs and window sizes change.', run: dashboardLive },
  { name: 'ticket-form', description: 'Fills in a support form with every kind of input, after a failed first attempt.', run: ticketForm },
  { name: 'two-tabs', description: 'Two pages of one session open at once: shop and support form in turns.', run: twoTabs },
  { name: 'errors-network', description: 'Console errors and warnings, uncaught errors, and requests that succeed, fail, dawdle or are cancelled.', run: errorsNetwork },
  { name: 'iframe-shadow', description: 'Custom elements with shadow roots and a chat in a same-origin iframe.', run: iframeShadow },
  { name: 'login-short', description: 'A failed and a successful login, with the password shown in clear on the way.', run: loginShort },
];
