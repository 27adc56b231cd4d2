// Brings the database to the schema of this version with the application's own migrations.
const { createConfig } = require('unleash-server/dist/lib/create-config');
const { migrateDb } = require('unleash-server/dist/migrator');

migrateDb(createConfig({})).catch((error) => {
  console.error(error);
  process.exit(1);
});
