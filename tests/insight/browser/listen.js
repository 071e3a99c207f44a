// Runs before the page's own program: writes down what goes wrong in it.
window.problems = [];
window.addEventListener("error", (event) => problems.push(String(event.message)));
window.addEventListener("securitypolicyviolation", (event) => problems.push(event.blockedURI));
for (const kind of ["error", "warn"]) console[kind] = (...values) => problems.push(values.join(" "));
window.alert = (text) => problems.push(`alert ${text}`);
