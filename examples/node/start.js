// Starts the server. Its migrations run before, as the owner of the tables: migrate.js.
require('unleash-server').start({ db: { disableMigration: true } });
