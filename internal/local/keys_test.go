package local_test

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"cardorder/internal/config"
	"cardorder/internal/local"
	"cardorder/internal/store"
)

var names = []string{
	local.FileSealing, local.FileContentHash, local.FileNotificationKey, local.FileD1ClientSecret,
	local.FileToken, local.FileTokenHash, local.FileSigningKey, local.FileSigningKeyPublic,
}

func makeKeys(t *testing.T, dir string) local.Keys {
	t.Helper()
	k, err := local.MakeKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func read(t *testing.T, k local.Keys, name string) string {
	t.Helper()
	text, err := k.Read(name)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		all[e.Name()] = string(text)
	}
	return all
}

func wantMode(t *testing.T, path string, want fs.FileMode) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != want {
		t.Errorf("%s has the mode %o, want %o", path, got, want)
	}
}

func TestMakeKeys(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "deep", "keys")
	k := makeKeys(t, dir)
	wantMode(t, dir, 0o700)
	wantMode(t, filepath.Dir(dir), 0o700)
	for _, name := range names {
		wantMode(t, k.Path(name), 0o600)
	}
	if got := slices.Sorted(maps.Keys(contents(t, dir))); !slices.Equal(got, slices.Sorted(slices.Values(names))) {
		t.Errorf("the folder holds %q", got)
	}

	// Each file is what the configuration wants.
	if _, err := store.NewSealer([]byte(read(t, k, local.FileSealing))); err != nil {
		t.Error(err)
	}
	for _, name := range []string{local.FileContentHash, local.FileNotificationKey} {
		if b, err := base64.StdEncoding.DecodeString(read(t, k, name)); err != nil || len(b) != 32 {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
	}
	for _, name := range []string{local.FileToken, local.FileD1ClientSecret} {
		if b, err := base64.RawURLEncoding.DecodeString(read(t, k, name)); err != nil || len(b) != 32 {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
	}
	hash := sha256.Sum256([]byte(read(t, k, local.FileToken)))
	if read(t, k, local.FileTokenHash) != hex.EncodeToString(hash[:]) {
		t.Error("the hash is not the token's")
	}
	private, err := config.ParseSigningKey(read(t, k, local.FileSigningKey))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(read(t, k, local.FileSigningKeyPublic)))
	if block == nil || block.Type != "PUBLIC KEY" {
		t.Fatalf("public key: %+v", block)
	}
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if ec, ok := public.(*ecdsa.PublicKey); err != nil || !ok || !ec.Equal(&private.PublicKey) {
		t.Errorf("the public key is not the signing key's: %v", err)
	}

	// No two values are the same, here or in another folder.
	seen := make(map[string]string)
	for _, of := range []local.Keys{k, makeKeys(t, t.TempDir())} {
		for _, name := range names {
			value := read(t, of, name)
			if other, ok := seen[value]; ok {
				t.Errorf("%s is %s", of.Path(name), other)
			}
			seen[value] = of.Path(name)
		}
	}
}

func TestKeysAreNeverOverwritten(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	makeKeys(t, dir)
	before := contents(t, dir)
	makeKeys(t, dir)
	if after := contents(t, dir); !maps.Equal(before, after) {
		t.Error("a second time changed something")
	}

	// What is missing is made, whatever stands beside it.
	const mine = "whatever the operator wrote\n"
	for name, change := range map[string]func(string) error{
		local.FileContentHash: func(path string) error { return os.WriteFile(path, []byte(mine), 0o400) },
		local.FileSealing:     func(path string) error { return os.WriteFile(path, nil, 0o600) }, // empty is there, too
		local.FileTokenHash:   os.Remove,
		local.FileD1ClientSecret: func(path string) error {
			return os.Remove(path)
		},
	} {
		if err := change(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	makeKeys(t, dir)
	after := contents(t, dir)
	if after[local.FileContentHash] != mine || after[local.FileSealing] != "" {
		t.Error("a file was overwritten")
	}
	if after[local.FileTokenHash] != before[local.FileTokenHash] {
		t.Error("the token's hash is another")
	}
	if after[local.FileD1ClientSecret] == "" || after[local.FileD1ClientSecret] == before[local.FileD1ClientSecret] {
		t.Error("no new secret")
	}
}

// Two at once end with one set of keys that fits together.
func TestMakeKeysAtOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var wg sync.WaitGroup
	seen := make([]map[string]string, 8)
	for i := range seen {
		wg.Go(func() {
			k, err := local.MakeKeys(dir)
			if err != nil {
				t.Error(err)
				return
			}
			seen[i] = make(map[string]string)
			for _, name := range names {
				if seen[i][name], err = k.Read(name); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for i := range seen {
		if !maps.Equal(seen[0], seen[i]) {
			t.Error("somebody saw other keys")
		}
	}
	hash := sha256.Sum256([]byte(seen[0][local.FileToken]))
	if seen[0][local.FileTokenHash] != hex.EncodeToString(hash[:]) {
		t.Error("the hash is not the token's")
	}
	if n := len(contents(t, dir)); n != len(names) {
		t.Errorf("%d files are left, want %d", n, len(names))
	}
}

func TestMakeKeysFails(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := local.MakeKeys(file); err == nil {
		t.Error("a file was taken for a folder")
	}

	dir := t.TempDir() // a broken key is told, not replaced
	if err := os.WriteFile(filepath.Join(dir, local.FileSigningKey), []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := local.MakeKeys(dir); err == nil {
		t.Error("a public key was made of a broken private key")
	}
	if got := contents(t, dir); got[local.FileSigningKey] != "broken" {
		t.Errorf("the broken key is now %q", got[local.FileSigningKey])
	}
}
