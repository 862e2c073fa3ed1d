// Prints what Microsoft's JavaScript client knows of the API, as JSON: its operations, and the
// bodies that they send and take as a JSON Schema.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const require = createRequire(import.meta.url);
const text = readFileSync(require.resolve("@azure/arm-machinelearning"), "utf-8");
const names = [...text.matchAll(/^const (\w+OperationSpec[\w$]*) = {/gm)].map((found) => found[1]);
const client = new Function("require", "exports", `${text}\nreturn {${names}};`)(require, {});
const specs = Object.values(client);
const mappers = specs[0].serializer.modelMappers;
const simple = { Boolean: "boolean", Number: "number" };

function schema(mapper) {
  const { type, constraints = {} } = mapper;
  if (type.name === "Composite") return { $ref: `#/$defs/${type.className}` };
  if (type.name === "Sequence") return { type: "array", items: schema(type.element) };
  if (type.name === "Dictionary") {
    return { type: "object", additionalProperties: schema(type.value) };
  }
  if (type.name === "Enum") return { enum: type.allowedValues };
  if (type.name === "any") return {};
  return {
    type: simple[type.name] ?? "string",
    ...(constraints.Pattern && { pattern: constraints.Pattern.source }),
    ...(constraints.MinLength && { minLength: constraints.MinLength }),
  };
}

// The classes that a discriminator chooses from, as [parent, value, class].
const chosen = Object.entries(mappers.discriminators).filter(([key]) => key.includes("."))
  .map(([key, { type }]) => [...key.split("."), type]);
const isBase = (name) => name in mappers.discriminators || chosen.some(([one]) => one === name);

function composite({ type }) {
  const made = object(!type.additionalProperties);
  for (const property of Object.values(type.modelProperties)) {
    // "properties.workspaceId" lies within "properties"; a dot of a name itself has a backslash.
    const path = property.serializedName.split(/(?<!\\)\./);
    const last = path.pop().replaceAll("\\.", ".");
    let place = made;
    for (const name of path) place = place.properties[name] ??= object(true);
    place.properties[last] = schema(property);
    if (property.required && !property.readOnly) place.required.push(last);
  }
  const { serializedName, clientName } = type.polymorphicDiscriminator ?? {};
  if (!clientName || !isBase(type.className)) return made;
  const kinds = chosen
    .filter(([, , kind]) => !isBase(kind.className) && kind.modelProperties[clientName])
    .filter(([parent]) => parent === type.className || !mappers[parent].type.polymorphicDiscriminator)
    .map(([, value, kind]) => [value, kind.className]);
  return { discriminator: serializedName, kinds: Object.fromEntries(kinds) };
}

function object(closed) {
  return { type: "object", properties: {}, required: [], additionalProperties: !closed };
}

const operations = specs
  .filter(({ path }) => path?.startsWith("/"))
  .map(({ path, httpMethod, requestBody, responses }) => ({
    path,
    method: httpMethod,
    request: requestBody ? schema(requestBody.mapper) : null,
    responses: Object.fromEntries(
      Object.entries(responses).map(([status, { bodyMapper }]) => [
        status,
        bodyMapper ? schema(bodyMapper) : null,
      ]),
    ),
  }));
const models = Object.entries(mappers).filter(([, mapper]) => mapper.type?.name === "Composite");
const definitions = Object.fromEntries(models.map(([name, mapper]) => [name, composite(mapper)]));
console.log(JSON.stringify({ operations, definitions }));
