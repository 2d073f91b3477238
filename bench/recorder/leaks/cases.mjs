// All cases of the leak corpus, in the order of the manifest.

import { cases as blockedCases } from './blocked.mjs';
import { cases as dynamicCases } from './dynamic.mjs';
import { cases as maskedCases } from './masked.mjs';
import { cases as passwordCases } from './password.mjs';

export const CASES = [
  ...passwordCases,
  ...maskedCases,
  ...dynamicCases,
  ...blockedCases,
];
