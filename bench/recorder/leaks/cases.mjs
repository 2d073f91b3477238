// All cases of the leak corpus, in the order of the manifest.

import { cases as blockedCases } from './blocked.mjs';
import { cases as dynamicCases } from './dynamic.mjs';
import { cases as maskedCases } from './masked.mjs';
import { cases as networkCases } from './network.mjs';
import { cases as passwordCases } from './password.mjs';
import { cases as rulesCases } from './rules.mjs';
import { cases as textCases } from './texts.mjs';
import { cases as urlCases } from './urls.mjs';

export const CASES = [
  ...passwordCases,
  ...maskedCases,
  ...dynamicCases,
  ...blockedCases,
  ...rulesCases,
  ...urlCases,
  ...networkCases,
  ...textCases,
];
