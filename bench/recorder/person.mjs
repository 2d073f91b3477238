// Uses a page the way a person does: the mouse travels, keys take time, the
// wheel turns in notches. rrweb samples all of that, so the pace decides how
// dense a recording is.

import { setTimeout as sleep } from 'node:timers/promises';

import { makeRandom } from './random.mjs';

const MOUSE_STEP_MS = 25;

export class Person {
  constructor(page, seed) {
    this.page = page;
    this.random = makeRandom(seed);
    this.x = 400;
    this.y = 300;
  }

  pause(low, high = low * 1.4) {
    return sleep(this.random.between(low, high));
  }

  async moveTo(x, y) {
    const { random } = this;
    const from = { x: this.x, y: this.y };
    const distance = Math.hypot(x - from.x, y - from.y);
    const steps = Math.max(4, Math.round((180 + distance * 0.7) / MOUSE_STEP_MS));
    // Hands move in arcs: one control point beside the straight line.
    const bend = {
      x: (from.x + x) / 2 + random.between(-0.2, 0.2) * distance,
      y: (from.y + y) / 2 + random.between(-0.2, 0.2) * distance,
    };
    for (let step = 1; step <= steps; step += 1) {
      const t = 0.5 - Math.cos((Math.PI * step) / steps) / 2;
      const along = (a, b, c) => (1 - t) ** 2 * a + 2 * (1 - t) * t * b + t ** 2 * c;
      this.x = along(from.x, bend.x, x);
      this.y = along(from.y, bend.y, y);
      await this.page.mouse.move(this.x, this.y);
      await sleep(MOUSE_STEP_MS);
    }
  }

  // Resting hands still nudge the mouse.
  async read(ms) {
    const until = Date.now() + ms;
    const { width, height } = this.page.viewportSize();
    while (Date.now() < until) {
      await this.pause(350, 1100);
      const near = (value, limit) =>
        Math.min(limit - 10, Math.max(10, value + this.random.between(-60, 60)));
      await this.moveTo(near(this.x, width), near(this.y, height));
    }
  }

  // Wheels `distance` pixels down, or up if negative.
  async wheel(distance) {
    const notches = Math.round(Math.abs(distance) / 100);
    for (let i = 0; i < notches; i += 1) {
      await this.page.mouse.wheel(0, Math.sign(distance) * 100);
      await this.pause(45, 110);
    }
  }

  async bringIntoView(locator) {
    const { height } = this.page.viewportSize();
    // The sticky header covers the top of the page.
    const [top, bottom] = [90, height - 60];
    for (let tries = 0; tries < 60; tries += 1) {
      const box = await locator.boundingBox();
      const middle = box.y + box.height / 2;
      if (middle >= top && middle <= bottom) return;
      await this.wheel(middle < top ? -100 : 100);
    }
    await locator.scrollIntoViewIfNeeded();
  }

  async point(target) {
    const locator = typeof target === 'string' ? this.page.locator(target) : target;
    await locator.waitFor();
    await this.bringIntoView(locator);
    const box = await locator.boundingBox();
    await this.moveTo(
      box.x + box.width * this.random.between(0.35, 0.65),
      box.y + box.height * this.random.between(0.35, 0.65),
    );
    return locator;
  }

  async click(target) {
    const locator = await this.point(target);
    await this.pause(60, 160);
    await this.page.mouse.down();
    await this.pause(50, 110);
    await this.page.mouse.up();
    await this.pause(150, 350);
    return locator;
  }

  async type(target, text) {
    await this.click(target);
    for (const letter of text) {
      if (this.random.next() < 0.02) {
        await this.page.keyboard.type(this.random.pick([...'asdfghjkl']));
        await this.pause(180, 320);
        await this.page.keyboard.press('Backspace');
      }
      await this.page.keyboard.type(letter);
      await this.pause(letter === ' ' ? 70 : 45, letter === ' ' ? 180 : 120);
    }
  }

  async clear(target) {
    await this.click(target);
    await this.page.keyboard.press('Control+A');
    await this.pause(120);
    await this.page.keyboard.press('Delete');
  }

  // The open list of a <select> and the calendar of a date field belong to the
  // browser, not to the page, so there is nothing to click in them.
  async choose(target, value) {
    const locator = await this.point(target);
    await this.pause(400, 900);
    await locator.selectOption(value);
  }

  async setDate(target, value) {
    const locator = await this.point(target);
    await this.pause(300, 700);
    await locator.fill(value);
  }

  async slide(target, keyPresses, key) {
    const locator = await this.point(target);
    await locator.focus();
    for (let i = 0; i < keyPresses; i += 1) {
      await this.page.keyboard.press(key);
      await this.pause(80, 180);
    }
  }
}
