// From the API's own description: the types of all it takes and answers, and the settings of a run for forms.
import { readFileSync, writeFileSync } from 'node:fs';
import openapiTS, { astToString } from 'openapi-typescript';

const described = JSON.parse(readFileSync('src/api/openapi.json', 'utf8'));
writeFileSync('src/api/types.d.ts', astToString(await openapiTS(described)));

const schemas = described.components.schemas;
const resolve = (spec) => (spec.$ref ? schemas[spec.$ref.split('/').at(-1)] : spec);

function field([name, spec]) {
  const options = (spec.anyOf ?? [spec]).map(resolve);
  const main = options.find((option) => option.type !== 'null');
  return {
    name,
    help: spec.description ?? '',
    kind: main.enum ? 'choice' : main.type === 'array' ? 'list' : main.type,
    of: main.items?.type,
    choices: main.enum,
    isSecret: main.format === 'password' || main.writeOnly === true,
    isNullable: options.some((option) => option.type === 'null'),
    minimum: main.minimum ?? main.exclusiveMinimum,
    isAbove: main.exclusiveMinimum !== undefined,
    maximum: main.maximum ?? main.exclusiveMaximum,
    isBelow: main.exclusiveMaximum !== undefined,
    initial: spec.default ?? null,
  };
}

const { dataset: _dataset, ...properties } = schemas.TrainingConfig.properties;
const initial = (schema) => Object.fromEntries(Object.entries(schema.properties).map(([name, spec]) => [name, spec.default ?? null]));
const fields = { settings: Object.entries(properties).map(field), dataset: { ...initial(schemas.DatasetConfig), format: initial(schemas.DatasetFormat) } };
writeFileSync('src/api/fields.json', `${JSON.stringify(fields, null, 1)}\n`);
