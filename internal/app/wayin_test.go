package app_test

import (
	"crypto/tls"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"cardorder/internal/config"
	"cardorder/internal/d1sim"
	"cardorder/internal/local"
	"cardorder/internal/pgtest"
)

const otherIssuer = "ISSUER0002"

// secondIssuer is one with credentials of its own.
func secondIssuer(cfg *config.Config) {
	second := cfg.Issuers[0]
	second.ID, second.Notifications.ClientID = otherIssuer, "d1-two"
	cfg.Issuers = append(cfg.Issuers, second)
}

func newMutualBank(t *testing.T, adjust ...func(*config.Config)) *bank {
	t.Helper()
	sim := fast
	sim.HoldNotifications = true
	return newBankIn(t, local.Config{DatabaseURL: pgtest.New(t), Simulator: sim, MutualTLS: true}, adjust...)
}

// peer is somebody who calls the listener for D1.
type peer struct {
	b    *bank
	http *http.Client
}

// peer makes one with a certificate (PEM, with its key), or none.
func (b *bank) peer(certificate []byte) peer {
	b.t.Helper()
	towards, err := b.env.D1TLS()
	if err != nil {
		b.t.Fatal(err)
	}
	towards.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if certificate == nil {
			return &tls.Certificate{}, nil
		}
		cert, err := tls.X509KeyPair(certificate, certificate)
		return &cert, err // whatever the server says it wants
	}
	transport := &http.Transport{TLSClientConfig: towards}
	b.t.Cleanup(transport.CloseIdleConnections)
	return peer{b, &http.Client{Transport: transport}}
}

// d1 is the simulator's certificate.
func (b *bank) d1() []byte {
	b.t.Helper()
	text, err := b.env.Certificates.Read(local.FileClientCert)
	if err != nil {
		b.t.Fatal(err)
	}
	return []byte(text)
}

func (p peer) do(path, contentType, body string, adorn func(*http.Request)) (int, string, error) {
	p.b.t.Helper()
	r, err := http.NewRequestWithContext(p.b.t.Context(), http.MethodPost, p.b.env.Ready.NotificationsURL+path, strings.NewReader(body))
	if err != nil {
		p.b.t.Fatal(err)
	}
	r.Header.Set("Content-Type", contentType)
	adorn(r)
	res, err := p.http.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	return res.StatusCode, string(text), err
}

const secretContent = "MARKER-IN-THE-BODY"

// notify sends a notification that finds no order, and so is stored when it is let in.
func (p peer) notify(issuer, token string) (status int, text string, err error) {
	p.b.t.Helper()
	return p.do("/notifications/d1/v2/issuers/"+issuer+"/cards", "application/json",
		`{"operations":[{"operationId":"`+secretContent+`","operation":"PRODUCE","cardId":"nobody"}]}`,
		func(r *http.Request) {
			if token != "" {
				r.Header.Set("Authorization", "Bearer "+token)
			}
		})
}

// token fetches one with the credentials of an issuer, by its place in the configuration.
func (p peer) token(i int) (status int, token string) {
	p.b.t.Helper()
	n := p.b.env.ServiceConfig().Issuers[i].Notifications
	status, text, err := p.do("/authz/d1/v1/oauth2/token", "application/x-www-form-urlencoded", "grant_type=client_credentials",
		func(r *http.Request) { r.SetBasicAuth(n.ClientID, n.ClientSecret.Reveal()) })
	if err != nil {
		p.b.t.Fatal(err)
	}
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	if err := json.Unmarshal([]byte(text), &answer); err != nil {
		p.b.t.Fatalf("%d %s", status, text)
	}
	return status, answer.AccessToken
}

// forge signs a token as we do.
func (b *bank) forge(key []byte, issuer string, expiry time.Time) string {
	b.t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: key}, (&jose.SignerOptions{}).WithHeader("kid", "local"))
	if err != nil {
		b.t.Fatal(err)
	}
	token, err := jwt.Signed(signer).Claims(map[string]any{"iss": "cardorder", "issuers": []string{issuer}, "exp": expiry.Unix()}).Serialize()
	if err != nil {
		b.t.Fatal(err)
	}
	return token
}

func (b *bank) wantStored(want int) {
	b.t.Helper()
	if n := query[int](b, `SELECT count(*) FROM notifications`); n != want {
		b.t.Errorf("%d notifications are stored, want %d", n, want)
	}
}

// wantMetrics waits for lines: what a caller sees already is counted a moment later, and
// what is read from the database may be as old as reading it took.
func (b *bank) wantMetrics(want ...string) {
	b.t.Helper()
	for _, line := range want {
		b.eventually("the metrics say "+line, func() bool { return strings.Contains(b.metrics(), line+"\n") })
	}
}

// D1 comes with its certificate and a token, and the order moves.
func TestMutualTLS(t *testing.T) {
	t.Parallel()
	b := newMutualBank(t)
	b.settings(func(s *d1sim.Settings) { s.HoldNotifications = false })
	id := b.place(b.thales("mutual"))
	b.await(id, "SHIPPED")
	if strings.Contains(b.logs.String(), "clientCertificate is false") {
		t.Error("the service warns of what is not so")
	}
}

// Whoever is not D1 is turned away, told nothing, counted, and leaves nothing behind.
func TestNotD1(t *testing.T) {
	t.Parallel()
	b := newMutualBank(t, secondIssuer)
	key, err := b.env.ServiceConfig().Keys.NotificationTokens[0].Secret.Bytes32()
	if err != nil {
		t.Fatal(err)
	}
	other, err := local.NewAuthority("cardorder, on this machine only") // by the same name
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	foreign, err := other.Client("d1sim", now.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}

	// By the certificate: TLS turns them away.
	good := b.peer(b.d1())
	_, token := good.token(0)
	for name, certificate := range map[string][]byte{"none": nil, "of another authority": foreign} {
		if status, text, err := b.peer(certificate).notify(local.IssuerID, token); err == nil {
			t.Errorf("a certificate %s was answered %d %q", name, status, text)
		}
	}

	old, err := b.env.D1TLS()
	if err != nil {
		t.Fatal(err)
	}
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	if conn, err := (&tls.Dialer{Config: old}).DialContext(t.Context(), "tcp", strings.TrimPrefix(b.env.Ready.NotificationsURL, "https://")); err == nil {
		_ = conn.Close()
		t.Error("TLS 1.1 is spoken")
	}

	// By the token.
	_, others := good.token(1)
	for name, token := range map[string]string{
		"none": "", "core banking's": b.env.Ready.Token, "another issuer's": others, "cut": token[:len(token)-5],
		"forged":  b.forge([]byte(strings.Repeat("x", 32)), local.IssuerID, now.Add(time.Hour)),
		"expired": b.forge(key, local.IssuerID, now.Add(-2*time.Minute)),
	} {
		if status, text, err := good.notify(local.IssuerID, token); err != nil || status != http.StatusUnauthorized || text != "" {
			t.Errorf("a token, %s: %d %q %v", name, status, text, err)
		}
	}
	b.wantStored(0)
	b.wantMetrics(
		`cardorder_tls_handshakes_failed_total{listener="notifications",reason="no-certificate"} 1`,
		`cardorder_tls_handshakes_failed_total{listener="notifications",reason="authority"} 1`,
		`cardorder_tls_handshakes_failed_total{listener="notifications",reason="other"} 1`,
		`cardorder_notification_calls_refused_total{issuer="ISSUER0001",reason="no-token"} 1`,
		`cardorder_notification_calls_refused_total{issuer="ISSUER0001",reason="token"} 3`,
		`cardorder_notification_calls_refused_total{issuer="ISSUER0001",reason="token-issuer"} 1`,
		`cardorder_notification_calls_refused_total{issuer="ISSUER0001",reason="token-expired"} 1`,
		`cardorder_notification_calls_refused_total{issuer="ISSUER0002",reason="token"} 0`,
	)
	if b.logged(secretContent) || b.logged(token) {
		t.Error("what was sent stands in the log")
	}
	b.eventually("the log tells of the refusals", func() bool {
		return b.logged("refused=token-issuer") && b.logged("client didn't provide a certificate")
	})
	// The test's own tokens are good when nothing is wrong with them.
	for name, token := range map[string]string{"D1's": token, "the test's": b.forge(key, local.IssuerID, now.Add(time.Hour))} {
		if status, text, err := good.notify(local.IssuerID, token); err != nil || status != http.StatusNoContent {
			t.Errorf("%s: %d %q %v", name, status, text, err)
		}
	}
	b.wantStored(1)
}

// ours puts an authority of the test in place of the environment's.
func (b *bank) ours() *local.Authority {
	b.t.Helper()
	authority, err := local.NewAuthority("the test's")
	if err != nil {
		b.t.Fatal(err)
	}
	b.trust(authority.PEM())
	b.env.Service.ReloadCertificates()
	return authority
}

// trust exchanges the authorities of client certificates.
func (b *bank) trust(content ...[]byte) {
	b.t.Helper()
	var all []byte
	for _, c := range content {
		all = append(all, c...)
	}
	// In one step, as rotations are done.
	file := b.env.Certificates.Path(trustedFile)
	if err := os.WriteFile(file+".new", all, 0o600); err != nil {
		b.t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		b.t.Fatal(err)
	}
}

const trustedFile = "trusted.pem"

// trusting lets the service trust a file of its own, so that a peer's trust in the server stays.
func trusting(t *testing.T) func(*config.Config) {
	t.Helper()
	return func(cfg *config.Config) {
		text, err := os.ReadFile(cfg.Notifications.TLS.ClientCAFile)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Notifications.TLS.ClientCAFile = strings.Replace(cfg.Notifications.TLS.ClientCAFile, local.FileAuthority, trustedFile, 1)
		if err := os.WriteFile(cfg.Notifications.TLS.ClientCAFile, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func issue(t *testing.T, a *local.Authority, name string, notAfter time.Time, dns ...string) []byte {
	t.Helper()
	certificate, err := a.Client(name, notAfter, dns...)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}

// Who of an authority's certificates is D1 is told by a name; an expired one is nobody's.
func TestCertificateNamesAndEnds(t *testing.T) {
	t.Parallel()
	b := newMutualBank(t, trusting(t), func(cfg *config.Config) {
		cfg.Issuers[0].Notifications.Token = new(false)
		cfg.Issuers[0].Notifications.ClientNames = []string{"D1 of Thales", "d1.example"}
	})
	authority, later := b.ours(), time.Now().Add(time.Hour)
	for _, c := range []struct {
		name string
		dns  []string
		want int
	}{
		{"D1 of Thales", nil, http.StatusNoContent},
		{"another", []string{"x.example", "D1.Example"}, http.StatusNoContent},
		{"d1 of thales", nil, http.StatusUnauthorized},
		{"", []string{"*.example", "d1.example.org"}, http.StatusUnauthorized},
		{"", nil, http.StatusUnauthorized},
	} {
		if status, text, err := b.peer(issue(t, authority, c.name, later, c.dns...)).notify(local.IssuerID, ""); err != nil || status != c.want || text != "" {
			t.Errorf("%q %q: %d %q %v, want %d", c.name, c.dns, status, text, err, c.want)
		}
	}
	if status, _, err := b.peer(issue(t, authority, "d1.example", time.Now().Add(-time.Minute))).notify(local.IssuerID, ""); err == nil {
		t.Errorf("an expired certificate was answered %d", status)
	}
	b.wantMetrics(`cardorder_notification_calls_refused_total{issuer="ISSUER0001",reason="name"} 3`,
		`cardorder_tls_handshakes_failed_total{listener="notifications",reason="certificate-expired"} 1`)
	b.wantStored(1)
}

// Authorities come and go while the service runs, for connections that are open too. A
// bad file changes nothing.
func TestAuthoritiesRotate(t *testing.T) {
	t.Parallel()
	b := newMutualBank(t, trusting(t), func(cfg *config.Config) { cfg.Issuers[0].Notifications.ClientNames = nil })
	before, later := b.ours(), time.Now().Add(time.Hour)
	next, err := local.NewAuthority("the next")
	if err != nil {
		t.Fatal(err)
	}
	_, token := b.peer(issue(t, before, "d1", later)).token(0)
	is := func(what string, p peer, want int) {
		t.Helper()
		status, _, err := p.notify(local.IssuerID, token)
		if want == 0 && err == nil || want != 0 && (err != nil || status != want) {
			t.Errorf("%s: %d %v, want %d", what, status, err, want)
		}
	}
	old, fresh := b.peer(issue(t, before, "d1", later)), b.peer(issue(t, next, "d1", later))
	is("the old one", old, http.StatusNoContent)
	is("the next one is not known yet", fresh, 0)

	// Both, found by itself.
	b.trust(before.PEM(), next.PEM())
	b.eventually("the next one is let in", func() bool {
		status, _, err := fresh.notify(local.IssuerID, token)
		return err == nil && status == http.StatusNoContent
	})
	is("the old one beside it", old, http.StatusNoContent)

	// Half a file: all stays, and the metrics tell.
	b.trust(next.PEM()[:100])
	b.env.Service.ReloadCertificates()
	b.wantMetrics(`cardorder_tls_last_reload_successful{listener="notifications"} 0`)
	if !b.logged("the certificates are not right; what was in effect stays") {
		t.Error("the log does not tell of the bad file")
	}
	is("the old one still", old, http.StatusNoContent)
	is("the next one still", b.peer(issue(t, next, "d1", later)), http.StatusNoContent)

	// The old one goes: its connection is open, and good for nothing.
	b.trust(next.PEM())
	b.env.Service.ReloadCertificates()
	b.wantMetrics(`cardorder_tls_last_reload_successful{listener="notifications"} 1`)
	is("the old one on its connection", old, http.StatusUnauthorized)
	is("the old one on another", old, 0)
	is("the next one on its connection", fresh, http.StatusNoContent)
	b.wantMetrics(`cardorder_notification_calls_refused_total{issuer="ISSUER0001",reason="authority"} 1`)
}

// The server's own certificate rotates as well.
func TestServerCertificateRotates(t *testing.T) {
	t.Parallel()
	b := newMutualBank(t)
	towards, err := b.env.D1TLS()
	if err != nil {
		t.Fatal(err)
	}
	serial := func() string {
		t.Helper()
		conn, err := (&tls.Dialer{Config: towards}).DialContext(t.Context(), "tcp", strings.TrimPrefix(b.env.Ready.NotificationsURL, "https://"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		return conn.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	authority, err := local.NewAuthority("the next")
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := authority.Server()
	if err != nil {
		t.Fatal(err)
	}
	towards.RootCAs = towards.RootCAs.Clone()
	towards.RootCAs.AppendCertsFromPEM(authority.PEM())
	first := serial()
	if err := os.WriteFile(b.env.Certificates.Path(local.FileServerCert), certificate, 0o600); err != nil {
		t.Fatal(err)
	}
	b.env.Service.ReloadCertificates()
	if serial() == first {
		t.Error("the old certificate is still shown")
	}
}

// Issuers of one listener may differ in what they demand.
func TestWayInIsEachIssuers(t *testing.T) {
	t.Parallel()
	b := newMutualBank(t, secondIssuer, func(cfg *config.Config) {
		n := &cfg.Issuers[1].Notifications
		n.ClientCertificate, n.ClientNames = new(false), nil
	})
	bare, d1 := b.peer(nil), b.peer(b.d1())
	if status, token := bare.token(0); status != http.StatusUnauthorized || token != "" {
		t.Errorf("a token of the first issuer without a certificate: %d", status)
	}
	_, first := d1.token(0)
	status, second := bare.token(1)
	if status != http.StatusOK {
		t.Errorf("a token of the second issuer: %d", status)
	}
	for _, c := range []struct {
		name   string
		peer   peer
		issuer string
		token  string
		want   int
	}{
		{"both, to the first", d1, local.IssuerID, first, http.StatusNoContent},
		{"a token alone, to the first", bare, local.IssuerID, first, http.StatusUnauthorized},
		{"a certificate alone, to the first", d1, local.IssuerID, "", http.StatusUnauthorized},
		{"a token alone, to the second", bare, otherIssuer, second, http.StatusNoContent},
		{"both, to the second", d1, otherIssuer, second, http.StatusNoContent},
		{"a certificate alone, to the second", d1, otherIssuer, "", http.StatusUnauthorized},
		{"the second's token, to the first", d1, local.IssuerID, second, http.StatusUnauthorized},
	} {
		if status, text, err := c.peer.notify(c.issuer, c.token); err != nil || status != c.want || text != "" {
			t.Errorf("%s: %d %q %v, want %d", c.name, status, text, err, c.want)
		}
	}
	b.wantMetrics(`cardorder_notification_calls_refused_total{issuer="ISSUER0001",reason="no-certificate"} 2`)
	if !b.logged(`a proxy in front must (notifications.clientCertificate is false)" issuerIds=[ISSUER0002]`) {
		t.Error("the start does not warn of the second issuer")
	}
	// An authority that nobody trusts is none, for the second one too.
	other, err := local.NewAuthority("other")
	if err != nil {
		t.Fatal(err)
	}
	if status, _, err := b.peer(issue(t, other, "d1sim", time.Now().Add(time.Hour))).notify(otherIssuer, second); err == nil {
		t.Errorf("a foreign certificate: %d", status)
	}
}

// Keys of tokens rotate from restart to restart, and D1's tokens stay good.
func TestTokenKeysRotateAcrossRestarts(t *testing.T) {
	t.Parallel()
	b := newMutualBank(t)
	cfg := b.env.ServiceConfig()
	old := cfg.Keys.NotificationTokens[0]
	next := config.TokenKey{ID: "next", Secret: config.NewSecret("bmV4dCBuZXh0IG5leHQgbmV4dCBuZXh0IG5leHQgbmU=")}
	d1 := b.peer(b.d1())
	restart := func(keys ...config.TokenKey) {
		t.Helper()
		if err := b.env.StopService(t.Context()); err != nil {
			t.Fatal(err)
		}
		cfg.Keys.NotificationTokens = keys
		if err := b.env.StartService(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	is := func(what, token string, want int) {
		t.Helper()
		if status, _, err := d1.notify(local.IssuerID, token); err != nil || status != want {
			t.Errorf("%s: %d %v, want %d", what, status, err, want)
		}
	}
	_, first := d1.token(0)
	restart(old, next) // known everywhere
	is("the first token, both keys known", first, http.StatusNoContent)
	restart(next, old) // signs
	_, second := d1.token(0)
	is("the first token, the next key signing", first, http.StatusNoContent)
	restart(next) // a token's lifetime later
	is("the second token, the old key gone", second, http.StatusNoContent)
	is("the first token, the old key gone", first, http.StatusUnauthorized)
}
