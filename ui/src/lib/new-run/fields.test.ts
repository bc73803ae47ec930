import { expect, test } from 'vitest';
import { ESSENTIAL_SETTINGS, FIELDS, labelOf, parseInput, rangeOf, settingGroups, type Field } from './fields';

const field = (name: string): Field => FIELDS.get(name) as Field;

test('every setting of the API is in the form once', () => {
  const inForm = [...ESSENTIAL_SETTINGS, ...settingGroups().flatMap((group) => group.fields.map((each) => each.name))];
  expect(new Set(inForm).size).toBe(inForm.length);
  expect([...inForm, 'base_model', 'output_name', 'hf_token'].sort()).toEqual([...FIELDS.keys()].sort());
});

test('input is checked against the range of the schema', () => {
  expect(parseInput(field('learning_rate'), ' 5e-6 ')).toBe(5e-6);
  expect(parseInput(field('learning_rate'), '')).toBeUndefined();
  expect(() => parseInput(field('learning_rate'), '0')).toThrow('greater than 0');
  expect(() => parseInput(field('lora_r'), '1.5')).toThrow('integer');
  expect(() => parseInput(field('lora_r'), 'x')).toThrow('must be a number, not x');
  expect(parseInput(field('gpu_ids'), '0, 1')).toEqual([0, 1]);
  expect(parseInput(field('loss_weights'), '0.8, 2')).toEqual([0.8, 2]);
  expect(parseInput(field('target_modules'), 'q_proj,, v_proj ')).toEqual(['q_proj', 'v_proj']);
});

test('every setting has help, and numbers have a range', () => {
  expect([...FIELDS.values()].filter((each) => !each.help && !['base_model'].includes(each.name))).toEqual([]);
  expect(rangeOf(field('beta'))).toBe('greater than 0 and at most 10');
  expect(rangeOf(field('batch_size'))).toBe('between 1 and 1024');
});

test('labels are words, with abbreviations as they are usually written', () => {
  const labels = { num_epochs: 'Number of epochs', lora_r: 'LoRA r', use_rslora: 'Use rsLoRA', use_4bit: 'Use 4-bit weights', nll_weight: 'NLL weight', simpo_gamma: 'SimPO gamma', push_to_hub: 'Push to the Hub', hf_hub_private: 'Hub private', gpu_ids: 'GPU ids', wandb_key: 'W&B key' };
  expect(Object.fromEntries(Object.keys(labels).map((name) => [name, labelOf(name)]))).toEqual(labels);
});
