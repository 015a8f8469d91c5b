package main_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cardorder/internal/pgrun"
)

// Orders of an older system are taken over, what is wrong with others is told by its line,
// and values are not repeated.
func TestImport(t *testing.T) {
	t.Parallel()
	pg, err := pgrun.Start(t.Context(), pgrun.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pg.Stop(); err != nil {
			t.Error(err)
		}
	})
	s := newSite(t, pg.URL(""))
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(s.dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := write("good.csv", "cardId,operationId,status\ncard-1,op-1,SUBMITTED\ncard-2,op-2,CARD_SHIPPED\n")
	bad := write("bad.ndjson", `{"cardId":"4111111111111111","operationId":"op-3","status":"SUBMITTED"}
{"cardId":"card-4","operationId":"op-4","status":"READY"}
{"cardId":"card-5"
`)
	take := func(code int, summary string, args ...string) *process {
		t.Helper()
		p := s.run(t, append([]string{"import"}, args...)...)
		p.wantExit(code)
		if got := strings.TrimSpace(p.stdout.String()); got != summary {
			t.Errorf("%q says %q, want %q", args, got, summary)
		}
		s.wantNoSecret(t, p)
		return p
	}
	wantParts(t, take(1, "read 0, imported 0, known before 0, refused 0", "--issuer", "ISSUER0001", good).stderr.String(), "server migrate up")
	s.run(t, "migrate", "up").wantExit(0)
	wantParts(t, take(1, "read 0, imported 0, known before 0, refused 0", "--issuer", "NOBODY0001", good).stderr.String(), "the issuer is not configured")
	take(0, "read 2, imported 2, known before 0, refused 0 (dry run: nothing was stored)", "--issuer", "ISSUER0001", "--dry-run", good)
	take(0, "read 2, imported 2, known before 0, refused 0", "--issuer", "ISSUER0001", good)
	take(0, "read 2, imported 0, known before 2, refused 0", "--issuer", "ISSUER0001", good)
	p := take(1, "read 3, imported 1, known before 0, refused 2", "--issuer", "ISSUER0001", bad)
	wantParts(t, p.stderr.String(), "line 1: /cardId: holds what looks like a card number (card-number)", "line 3: not valid JSON", "2 lines were refused")
	if strings.Contains(p.stderr.String(), "4111111111111111") {
		t.Error("it repeats the card number")
	}
}
