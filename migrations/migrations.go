// Package migrations holds the database schema as goose migrations: forward
// only, never rewritten once released, safe while the service runs.
package migrations

import "embed"

// FS holds every migration.
//
//go:embed *.sql
var FS embed.FS
