// Shows /openapi.json by Swagger UI. On a server with tokens the document needs one: until the
// page's Authorize button was given a token, only what is open to everybody is shown.
"use strict";

const DOCUMENT = "openapi.json";

// What GET /openapi.json answers to `token`: a document, or a stand-in that says why there is none.
async function described(token) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let answer;
  try {
    answer = await fetch(DOCUMENT, { headers, credentials: "omit", cache: "no-store" });
    if (answer.ok) return await answer.json();
  } catch (error) {
    return standIn(`The server can't be reached: ${error.message}`);
  }
  const problem = await answer.json().catch(() => ({ detail: `status ${answer.status}` }));
  return standIn(problem.detail);
}

function standIn(why) {
  const probe = (summary) => ({
    get: { tags: ["health"], summary, security: [], responses: { 200: { description: "It is." } } },
  });
  return {
    openapi: "3.1.0",
    info: {
      title: "gatherd",
      version: "v1",
      description: `**${why}**\n\nPress *Authorize* and give a token; then every operation is here.`,
    },
    components: { securitySchemes: { token: { type: "http", scheme: "bearer" } } },
    security: [{ token: [] }],
    paths: {
      "/healthz": probe("Whether the process is alive"),
      "/readyz": probe("Whether the server takes traffic"),
    },
  };
}

// Operations are where this page is, below whatever prefix a proxy has put it.
function placed(spec) {
  const prefix = new URL(".", location.href).pathname.replace(/\/$/, "");
  return prefix ? { ...spec, servers: [{ url: prefix }] } : spec;
}

async function show(token) {
  ui.specActions.updateSpec(JSON.stringify(placed(await described(token))));
}

const readAnewWhenAuthorized = {
  statePlugins: {
    auth: {
      wrapActions: {
        authorize: (authorize) => (given) => {
          const done = authorize(given);
          show(given.token?.value);
          return done;
        },
        logout: (logout) => (names) => {
          const done = logout(names);
          show();
          return done;
        },
      },
    },
  },
};

const ui = SwaggerUIBundle({
  dom_id: "#swagger-ui",
  spec: placed(standIn("Reading the description …")),
  presets: [SwaggerUIBundle.presets.apis],
  plugins: [() => readAnewWhenAuthorized],
  layout: "BaseLayout",
  deepLinking: true,
  displayRequestDuration: true,
  // A token lives as long as the page, and the badge of an online validator isn't asked for.
  persistAuthorization: false,
  validatorUrl: null,
});
show();
