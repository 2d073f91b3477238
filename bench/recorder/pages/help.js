const faqSheet = new CSSStyleSheet();
faqSheet.replaceSync(`
  :host { display: block; border-bottom: 1px solid #ddd4c4; }
  button { font: inherit; width: 100%; text-align: left; padding: 12px 0; border: 0; background: none; cursor: pointer; }
  button::before { content: '+'; display: inline-block; width: 1.2em; color: #8a5a33; }
  :host([open]) button::before { content: '–'; }
  .answer { padding: 0 0 12px 1.2em; color: #5b5247; }
`);

customElements.define('faq-item', class extends HTMLElement {
  connectedCallback() {
    const root = this.attachShadow({ mode: 'open' });
    root.adoptedStyleSheets = [faqSheet];
    const button = el('button', { type: 'button' }, this.getAttribute('question'));
    const answer = el('div', { class: 'answer', hidden: '' }, el('slot'));
    button.addEventListener('click', () => {
      answer.hidden = !answer.hidden;
      this.toggleAttribute('open', !answer.hidden);
    });
    root.append(button, answer);
  }
});

customElements.define('star-rating', class extends HTMLElement {
  connectedCallback() {
    const root = this.attachShadow({ mode: 'open' });
    const style = el('style', {}, `
      .star { font-size: 30px; line-height: 1; border: 0; background: none; color: #cfc1a5; cursor: pointer; }
      .star.on { color: #c47a1c; }
      textarea { display: block; width: 100%; margin-top: 8px; box-sizing: border-box; font: inherit; }
    `);
    const thanks = el('p', {}, 'Click a star.');
    const stars = [1, 2, 3, 4, 5].map((value) => {
      const star = el('button', { class: 'star', 'aria-label': `${value} stars` }, '★');
      star.addEventListener('click', () => {
        stars.forEach((other, i) => other.classList.toggle('on', i < value));
        thanks.textContent = `Thank you for ${value} stars. Would you tell us more?`;
        if (!root.querySelector('textarea')) root.append(el('textarea', { rows: 3, 'aria-label': 'More' }));
      });
      return star;
    });
    root.append(style, ...stars, thanks);
  }
});
