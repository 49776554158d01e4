// nodemailer: node send.cjs PACKAGE PORT SENDER RECIPIENT <message
const [package, port, from, to] = process.argv.slice(2);
const transport = require(package).createTransport({host: "127.0.0.1", port: Number(port), secure: false, ignoreTLS: true});
const raw = require("fs").readFileSync(0);
transport.sendMail({envelope: {from, to}, raw}).catch(error => {
  console.error(error.message);
  process.exitCode = 1;
});
