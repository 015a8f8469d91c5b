package app

import (
	"bytes"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"cardorder/internal/config"
)

// What does not tell D1 from others is named at every start, and nothing else is.
func TestWarnAboutWayIn(t *testing.T) {
	t.Parallel()
	no := new(false)
	for name, c := range map[string]struct {
		n    config.Notifications
		want string
	}{
		"both":               {config.Notifications{}, ""},
		"a certificate":      {config.Notifications{Token: no, ClientNames: []string{"d1"}}, ""},
		"any certificate":    {config.Notifications{Token: no}, "any certificate of clientCaFile may notify"},
		"a token":            {config.Notifications{ClientCertificate: no}, "a proxy in front must"},
		"neither":            {config.Notifications{Token: no, ClientCertificate: no}, "NOBODY HERE TELLS D1 FROM OTHERS"},
		"neither, but names": {config.Notifications{Token: no, ClientCertificate: no, ClientNames: []string{"d1"}}, "NOBODY HERE"},
	} {
		var log bytes.Buffer
		cfg := &config.Config{
			Notifications: config.Listener{TLS: &config.TLS{}},
			Issuers:       []config.Issuer{{ID: "ISSUER0001", Notifications: c.n}, {ID: "ISSUER0002"}},
		}
		warnAboutWayIn(cfg, slog.New(slog.NewTextHandler(&log, nil)))
		lines := slices.Collect(strings.Lines(log.String()))
		switch {
		case c.want == "" && len(lines) == 0:
		case c.want != "" && len(lines) == 1 && strings.Contains(lines[0], c.want) && strings.Contains(lines[0], "issuerIds=[ISSUER0001]"):
		default:
			t.Errorf("%s: %q", name, lines)
		}
	}
}

// What is looked at is taken once it has come to rest, and once only.
func TestSteady(t *testing.T) {
	t.Parallel()
	s := steady{tried: "a"}
	for i, c := range []struct {
		state string
		due   bool
	}{
		{"a", false}, {"a", false}, {"b", false}, {"c", false}, {"c", true}, {"c", true}, {"a", false}, {"c", false}, {"a", false}, {"a", false},
	} {
		if due := s.look(c.state); due != c.due {
			t.Errorf("look %d at %s: %v", i, c.state, due)
		}
	}
}
