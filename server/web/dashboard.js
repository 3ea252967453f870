import { signOut, signedIn } from "/web/api.js";

document.querySelector("#sign-out").addEventListener("click", signOut);

async function start() {}

await signedIn(start);
