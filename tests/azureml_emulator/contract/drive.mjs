// Drives an emulator with Microsoft's JavaScript client: a model, an online endpoint with its
// deployment, a job, and a batch endpoint with its deployment, from their creation to their end.
//
//     NODE_EXTRA_CA_CERTS=authority.pem node drive.mjs ADDRESS.JSON CODE_ID DATASTORE_PATH
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const require = createRequire(import.meta.url);
const { AzureMachineLearningWorkspaces } = require("@azure/arm-machinelearning");
const [address, codeId, store] = process.argv.slice(2);
const { url, secret } = JSON.parse(readFileSync(address, "utf-8"));
const tenant = "00000000-0000-0000-0000-000000000000"; // also the client
const credential = {
  getToken: async (scopes) => {
    const body = new URLSearchParams({
      grant_type: "client_credentials", client_id: tenant, client_secret: secret,
      scope: [scopes].flat().join(" "),
    });
    const answer = await fetch(`${url}/${tenant}/oauth2/v2.0/token`, { method: "POST", body });
    const { access_token: token, expires_in: seconds } = await answer.json();
    return { token, expiresOnTimestamp: Date.now() + 1000 * seconds };
  },
};
const client = new AzureMachineLearningWorkspaces(credential, "local-subscription", {
  endpoint: url,
  credentialScopes: [`${url}/.default`],
});
const place = ["local", "javascript"];
const soon = { updateIntervalInMs: 50 };
const seen = {};

async function all(items) {
  const names = [];
  for await (const item of items) names.push(item.name);
  return names;
}

async function ended(name) {
  for (;;) {
    const { properties } = await client.jobs.get(...place, name);
    if (["Completed", "Failed", "Canceled"].includes(properties.status)) return properties.status;
    await new Promise((resume) => setTimeout(resume, 50));
  }
}

seen.workspace = (await client.workspaces.get(...place)).name;
seen.datastores = await all(client.datastores.list(...place));
const blobs = await client.datastores.get(...place, "workspaceblobstore");
seen.store = [blobs.properties.datastoreType, blobs.properties.credentials.credentialsType];
seen.secrets = (await client.datastores.listSecrets(...place, blobs.name)).secretsType;

const { modelVersions, modelContainers, environmentVersions, dataVersions } = client;
const model = await modelVersions.createOrUpdate(...place, "model", "1", {
  properties: { modelUri: store, modelType: "custom_model", tags: { a: "b" } },
});
seen.model = (await modelVersions.get(...place, "model", "1")).properties.modelUri === store;
seen.container = (await modelContainers.get(...place, "model")).properties.latestVersion;
seen.models = await all(modelContainers.list(...place));
const environment = await environmentVersions.createOrUpdate(...place, "environment", "1", {
  properties: { image: "image", condaFile: "name: a\ndependencies: [python=3.11]\n" },
});
const data = await dataVersions.createOrUpdate(...place, "data", "1", {
  properties: { dataType: "uri_folder", dataUri: store },
});

const { onlineEndpoints, onlineDeployments } = client;
const online = [...place, "js-online"];
const endpoint = { location: "local", identity: { type: "SystemAssigned" } };
await onlineEndpoints.beginCreateOrUpdateAndWait(
  ...online, { ...endpoint, properties: { authMode: "Key" } }, soon);
seen.scoringUri = (await onlineEndpoints.get(...online)).properties.scoringUri;
const deployment = {
  location: "local",
  sku: { name: "Default", capacity: 1 },
  properties: {
    endpointComputeType: "Managed",
    instanceType: "standard_ds3_v2",
    model: model.id,
    environmentId: environment.id,
    codeConfiguration: { codeId, scoringScript: "score.py" },
    scaleSettings: { scaleType: "Default" },
  },
};
const made = await onlineDeployments.beginCreateOrUpdateAndWait(
  ...online, "blue", deployment, soon);
seen.deployment = made.properties.provisioningState;
await onlineEndpoints.beginCreateOrUpdateAndWait(
  ...online, { ...endpoint, properties: { authMode: "Key", traffic: { blue: 100 } } }, soon);
await onlineDeployments.beginUpdateAndWait(
  ...online, "blue", { tags: { a: "b" }, sku: { name: "Default", capacity: 2 } }, soon);
const { sku, tags } = await onlineDeployments.get(...online, "blue");
seen.updated = [sku.capacity, tags.a];
const { primaryKey } = await onlineEndpoints.listKeys(...online);
await onlineEndpoints.beginRegenerateKeysAndWait(...online, { keyType: "Primary" }, soon);
seen.newKey = (await onlineEndpoints.listKeys(...online)).primaryKey !== primaryKey;
seen.logs = typeof (await onlineDeployments.getLogs(...online, "blue", { tail: 5 })).content;
seen.online = await all(onlineEndpoints.list(...place));
seen.deployments = await all(onlineDeployments.list(...online));
await onlineEndpoints.beginCreateOrUpdateAndWait(
  ...online, { ...endpoint, properties: { authMode: "Key", traffic: { blue: 0 } } }, soon);
await onlineDeployments.beginDeleteAndWait(...online, "blue", soon);
await onlineEndpoints.beginDeleteAndWait(...online, soon);
seen.gone = await onlineEndpoints.get(...online).catch((error) => [error.statusCode, error.code]);

const { jobs, computeOperations, batchEndpoints, batchDeployments } = client;
const compute = await computeOperations.beginCreateOrUpdateAndWait(...place, "cluster", {
  location: "local",
  properties: {
    computeType: "AmlCompute",
    properties: { vmSize: "Standard_DS3_v2", scaleSettings: { maxNodeCount: 2 } },
  },
}, soon);
const job = (command) => ({
  properties: { jobType: "Command", command, codeId, environmentId: environment.id,
    computeId: compute.id, experimentName: "js" },
});
await jobs.createOrUpdate(...place, "js-job", job("echo done"));
seen.job = await ended("js-job");
await jobs.createOrUpdate(...place, "js-endless", job("sleep 1000"));
await jobs.beginCancelAndWait(...place, "js-endless", soon);
seen.canceled = await ended("js-endless");
seen.jobs = await all(jobs.list(...place));

const batch = [...place, "js-batch"];
await batchEndpoints.beginCreateOrUpdateAndWait(
  ...batch, { location: "local", properties: { authMode: "AADToken" } }, soon);
await batchDeployments.beginCreateOrUpdateAndWait(...batch, "one", {
  location: "local",
  properties: {
    compute: compute.id,
    codeConfiguration: { codeId, scoringScript: "score.py" },
    model: { referenceType: "Id", assetId: model.id },
    miniBatchSize: 1,
    outputAction: "SummaryOnly",
  },
}, soon);
await batchEndpoints.beginUpdateAndWait(...batch, { tags: { a: "b" } }, soon);
seen.batch = (await batchEndpoints.get(...batch)).tags.a;
seen.batches = await all(batchEndpoints.list(...place));
await batchDeployments.beginDeleteAndWait(...batch, "one", soon);
await batchEndpoints.beginDeleteAndWait(...batch, soon);

await modelVersions.delete(...place, "model", "1");
seen.kept = await dataVersions.delete(...place, "data", "1").catch((error) => error.statusCode);
seen.archived = (await dataVersions.createOrUpdate(...place, "data", "1", {
  properties: { ...data.properties, isArchived: true },
})).properties.isArchived;
console.log(JSON.stringify(seen));
