package d1client

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
)

// newMutualTLS is a D1 that wants a client certificate of ca for its cards, not for
// its token.
func newMutualTLS(t *testing.T, ca *authority, version uint16, cards http.HandlerFunc) Config {
	t.Helper()
	srv := httptest.NewUnstartedServer(cards)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.TLS = &tls.Config{
		Certificates: []tls.Certificate{*ca.issue("d1")},
		ClientCAs:    ca.pool, ClientAuth: tls.RequireAndVerifyClientCert,
		MinVersion: version, MaxVersion: version,
	}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	cfg := newFakeD1(t, nil).config()
	cfg.BaseURL = srv.URL
	return cfg
}

func TestMutualTLSAndRotation(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	var seen atomic.Pointer[string]
	cfg := newMutualTLS(t, ca, tls.VersionTLS13, func(w http.ResponseWriter, r *http.Request) {
		seen.Store(&r.TLS.PeerCertificates[0].Subject.CommonName)
		accept(w, r)
	})
	var current atomic.Pointer[tls.Certificate]
	current.Store(ca.issue("bank one"))
	cfg.TLS = &tls.Config{
		RootCAs: ca.pool,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return current.Load(), nil
		},
	}
	c := newClient(t, cfg)
	wantAnswer(t, c.Produce(callContext(t), sampleOrder()), Taken, ReasonAccepted)
	if *seen.Load() != "bank one" {
		t.Errorf("D1 saw %q", *seen.Load())
	}
	current.Store(ca.issue("bank two"))
	c.Close()
	wantAnswer(t, c.Produce(callContext(t), sampleOrder()), Taken, ReasonAccepted)
	if *seen.Load() != "bank two" {
		t.Errorf("after rotation D1 saw %q", *seen.Load())
	}
}

func TestTLSFailures(t *testing.T) {
	t.Parallel()
	ca, other := newAuthority(t), newAuthority(t)
	trust := func(pool *x509.CertPool, certs ...tls.Certificate) *tls.Config {
		return &tls.Config{RootCAs: pool, Certificates: certs}
	}
	for name, tc := range map[string]struct {
		version uint16
		client  *tls.Config
		outcome Outcome
		reasons []Reason
	}{
		"unknown authority":    {tls.VersionTLS13, trust(other.pool, *ca.issue("bank")), NotTaken, []Reason{ReasonTLS}},
		"no certificate, 1.2":  {tls.VersionTLS12, trust(ca.pool), NotTaken, []Reason{ReasonTLS}},
		"bad certificate, 1.2": {tls.VersionTLS12, trust(ca.pool, *other.issue("bank")), NotTaken, []Reason{ReasonTLS}},
		// D1 rejects a certificate after the client's part of the handshake: by then
		// the order has been written, so there is no proof.
		"no certificate, 1.3":  {tls.VersionTLS13, trust(ca.pool), Unknown, []Reason{ReasonTLS, ReasonCut}},
		"bad certificate, 1.3": {tls.VersionTLS13, trust(ca.pool, *other.issue("bank")), Unknown, []Reason{ReasonTLS, ReasonCut}},
		"old version":          {tls.VersionTLS11, trust(ca.pool, *ca.issue("bank")), NotTaken, []Reason{ReasonTLS}},
		"min version is raised": {tls.VersionTLS11, &tls.Config{RootCAs: ca.pool, MinVersion: tls.VersionTLS10,
			Certificates: []tls.Certificate{*ca.issue("bank")}}, NotTaken, []Reason{ReasonTLS}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var handled atomic.Int64
			cfg := newMutualTLS(t, ca, tc.version, func(w http.ResponseWriter, r *http.Request) {
				handled.Add(1)
				accept(w, r)
			})
			cfg.TLS = tc.client
			wantAnswer(t, newClient(t, cfg).Produce(callContext(t), sampleOrder()), tc.outcome, tc.reasons...)
			if handled.Load() != 0 {
				t.Error("the order reached D1")
			}
		})
	}
}

func TestTokenEndpointTLSFailure(t *testing.T) {
	t.Parallel()
	srv := httptest.NewUnstartedServer(http.NotFoundHandler())
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	d1 := newFakeD1(t, accept)
	cfg := d1.config()
	cfg.TokenURL = srv.URL
	wantAnswer(t, newClient(t, cfg).Produce(callContext(t), sampleOrder()), NotTaken, ReasonTLS)
	if d1.orders.Load() != 0 {
		t.Error("an order was sent")
	}
}

func TestHTTPSServerSpokenToInPlain(t *testing.T) {
	t.Parallel()
	srv := httptest.NewUnstartedServer(http.NotFoundHandler())
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	cfg := newFakeD1(t, nil).config()
	cfg.BaseURL = strings.Replace(srv.URL, "https:", "http:", 1)
	// Go's server answers a plain request on a TLS port with a 400 of its own.
	a := newClient(t, cfg).Produce(callContext(t), sampleOrder())
	wantAnswer(t, a, Refused, ReasonRefused)
	if a.HasErrorBody {
		t.Error("that is not D1's refusal")
	}
}

func TestNewNamesEveryFault(t *testing.T) {
	t.Parallel()
	_, err := New(Config{
		BaseURL: "https://user:" + secretMark + "@host/", TokenURL: "http://host/token", IssuerID: "short",
		PathStyle: "upper", TLS: &tls.Config{InsecureSkipVerify: true}, MaxConnsPerHost: -1, TokenTimeout: -1,
	})
	if err == nil {
		t.Fatal("no error")
	}
	for _, name := range []string{
		"BaseURL", "TokenURL", "IssuerID", "PathStyle", "SigningKey ", "SigningKeyID", "TLS", "MaxConnsPerHost", "TokenTimeout",
	} {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("no word of %s in %v", name, err)
		}
	}
	if strings.Contains(err.Error(), secretMark) {
		t.Error("the error quotes the URL")
	}
}

func TestNewChangesNothingOfTheCallers(t *testing.T) {
	t.Parallel()
	cfg := newFakeD1(t, nil).config()
	cfg.TLS = &tls.Config{NextProtos: []string{"h2"}}
	c := newClient(t, cfg)
	if cfg.TLS.MinVersion != 0 || len(cfg.TLS.NextProtos) != 1 {
		t.Error("the caller's tls.Config was changed")
	}
	if tc := c.transport.TLSClientConfig; tc.MinVersion != tls.VersionTLS12 || c.transport.Protocols.HTTP2() {
		t.Errorf("min version %x, protocols %v", tc.MinVersion, c.transport.Protocols)
	}
}
