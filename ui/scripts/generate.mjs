// Generate TypeScript types of all requests and responses, and the form fields of a run's settings, from the OpenAPI schema.
import { readFileSync, writeFileSync } from 'node:fs';
import openapiTS, { astToString } from 'openapi-typescript';

const openapi = JSON.parse(readFileSync('src/api/openapi.json', 'utf8'));
writeFileSync('src/api/types.d.ts', astToString(await openapiTS(openapi)));

const schemas = openapi.components.schemas;
const resolve = (spec) => (spec.$ref ? schemas[spec.$ref.split('/').at(-1)] : spec);

function field([name, spec]) {
  const options = (spec.anyOf ?? [spec]).map(resolve);
  const main = options.find((option) => option.type !== 'null');
  return {
    name,
    help: spec.description ?? '',
    kind: main.enum ? 'choice' : main.type === 'array' ? 'list' : main.type,
    itemType: main.items?.type,
    choices: main.enum,
    isSecret: main.format === 'password' || main.writeOnly === true,
    isNullable: options.some((option) => option.type === 'null'),
    minimum: main.minimum ?? main.exclusiveMinimum,
    isMinimumExclusive: main.exclusiveMinimum !== undefined,
    maximum: main.maximum ?? main.exclusiveMaximum,
    isMaximumExclusive: main.exclusiveMaximum !== undefined,
    defaultValue: spec.default ?? null,
  };
}

const { dataset: _dataset, ...properties } = schemas.TrainingConfig.properties;
const defaults = (schema) => Object.fromEntries(Object.entries(schema.properties).map(([name, spec]) => [name, spec.default ?? null]));
const fields = { settings: Object.entries(properties).map(field), dataset: { ...defaults(schemas.DatasetConfig), format: defaults(schemas.DatasetFormat) } };
writeFileSync('src/api/fields.json', `${JSON.stringify(fields, null, 1)}\n`);
