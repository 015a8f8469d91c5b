package local

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"time"

	"cardorder/internal/config"
)

// The files with which the simulator and the service know each other, made anew at each
// start. Certificates have their keys in the same file.
const (
	FileAuthority  = "authority.pem"
	FileServerCert = "server.pem"
	FileClientCert = "d1-client.pem"
)

// d1Name is the simulator's name in its certificate.
const d1Name = "d1sim"

// makeCertificates lets the simulator come by mutual TLS, as D1 does.
func (e *Environment) makeCertificates(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the folder for certificates: %w", err)
	}
	e.Certificates = Keys{dir}
	authority, err := NewAuthority("cardorder, on this machine only")
	if err != nil {
		return err
	}
	server, err := authority.Server()
	if err != nil {
		return err
	}
	client, err := authority.Client(d1Name, time.Now().Add(certificateLifetime))
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{FileAuthority: authority.PEM(), FileServerCert: server, FileClientCert: client} {
		if err := os.WriteFile(e.Certificates.Path(name), content, 0o600); err != nil {
			return fmt.Errorf("writing a certificate: %w", err)
		}
	}
	return nil
}

// D1TLS is the simulator's side of TLS towards the service, nil without any.
func (e *Environment) D1TLS() (*tls.Config, error) {
	if !e.cfg.MutualTLS {
		return nil, nil
	}
	text, err := e.Certificates.Read(FileAuthority)
	if err != nil {
		return nil, err
	}
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM([]byte(text))
	file := e.Certificates.Path(FileClientCert)
	return &tls.Config{
		MinVersion: tls.VersionTLS12, RootCAs: trusted,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(file, file)
			return &cert, err
		},
	}, nil
}

// wayIn is how the simulator shows the service that it is D1.
func (e *Environment) wayIn(cfg *config.Config) {
	n := &cfg.Issuers[0].Notifications
	if !e.cfg.MutualTLS {
		n.ClientCertificate = new(false)
		return
	}
	n.ClientNames = []string{d1Name}
	server := e.Certificates.Path(FileServerCert)
	cfg.Notifications.TLS = &config.TLS{CertFile: server, KeyFile: server, ClientCAFile: e.Certificates.Path(FileAuthority)}
}
