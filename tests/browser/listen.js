// Runs before the page's own program: writes down what goes wrong in it, and tells the outer page
// of an error at once, since the script that uses the page may not come to its end.
window.problems = [];
window.addEventListener("error", (event) => {
  problems.push(String(event.message));
  parent.postMessage(JSON.stringify({ problems }), "*");
});
window.addEventListener("securitypolicyviolation", (event) => problems.push(event.blockedURI));
for (const kind of ["error", "warn"]) console[kind] = (...values) => problems.push(values.join(" "));
window.alert = (text) => problems.push(`alert ${text}`);
