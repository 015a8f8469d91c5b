package local

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/go-jose/go-jose/v4"

	"cardorder/internal/store"
)

// Keys are the keys and credentials of a service, as files of a folder.
type Keys struct{ dir string }

// The files of the folder. Each holds one value.
const (
	FileSealing          = "sealing-keyset.json"     // Tink keyset
	FileContentHash      = "content-hash.key"        // 32 bytes in base64
	FileNotificationKey  = "notification-token.key"  // 32 bytes in base64
	FileD1ClientSecret   = "notification-client.key" // D1's secret at our token endpoint
	FileToken            = "client.token"            // bearer token of a client of the API
	FileTokenHash        = "client.token.sha256"     // its hash, for the configuration
	FileSigningKey       = "d1-signing-key.pem"      // ES256, for assertions
	FileSigningKeyPublic = "d1-signing-key.pub.pem"  // what D1 gets
)

// MakeKeys writes every key that is not there yet. What exists is never
// overwritten: losing a sealing key loses what it sealed.
func MakeKeys(dir string) (Keys, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Keys{}, fmt.Errorf("making the folder for keys: %w", err)
	}
	k := Keys{dir}
	for _, file := range []struct {
		name string
		make func() ([]byte, error)
	}{
		{FileSealing, store.NewSealingKeyset},
		{FileContentHash, randomKey},
		{FileNotificationKey, randomKey},
		{FileD1ClientSecret, randomToken},
		{FileToken, randomToken},
		{FileTokenHash, k.tokenHash},
		{FileSigningKey, signingKey},
		{FileSigningKeyPublic, k.signingKeyPublic},
	} {
		if err := writeNew(k.Path(file.name), file.make); err != nil {
			return Keys{}, fmt.Errorf("making %s: %w", file.name, err)
		}
	}
	return k, nil
}

// Path returns where a file of the folder is.
func (k Keys) Path(name string) string { return filepath.Join(k.dir, name) }

// Read returns the content of a file of the folder.
func (k Keys) Read(name string) (string, error) {
	content, err := os.ReadFile(k.Path(name))
	if err != nil {
		return "", fmt.Errorf("reading a key: %w", err)
	}
	return string(content), nil
}

// writeNew makes a file appear whole, or leaves the one that is there: a crash
// must not leave half a key, nor two of us at once each use their own.
func writeNew(path string, content func() ([]byte, error)) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	b, err := content()
	if err != nil {
		return err
	}
	part, err := os.CreateTemp(filepath.Dir(path), ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(part.Name()) }()
	_, err = part.Write(b)
	if err := errors.Join(err, part.Sync(), part.Close()); err != nil {
		return err
	}
	if err := os.Link(part.Name(), path); !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil // somebody was faster
}

func randomBytes() []byte {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return b
}

func randomKey() ([]byte, error) {
	return []byte(base64.StdEncoding.EncodeToString(randomBytes())), nil
}

func randomToken() ([]byte, error) {
	return []byte(base64.RawURLEncoding.EncodeToString(randomBytes())), nil
}

func (k Keys) tokenHash() ([]byte, error) {
	token, err := k.Read(FileToken)
	if err != nil {
		return nil, err
	}
	hash := sha256.Sum256([]byte(token))
	return []byte(hex.EncodeToString(hash[:])), nil
}

func signingKey() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func (k Keys) signingKeyPublic() ([]byte, error) {
	text, err := k.Read(FileSigningKey)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errors.New("the signing key is not PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("the signing key is not an EC key")
	}
	der, err := x509.MarshalPKIXPublicKey(&ec.PublicKey)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}

// simulatorKey is the key with which the simulator opens card data, kept so
// that what was stored before a restart can still be opened after it.
func (k Keys) simulatorKey() (*ecdsa.PrivateKey, error) {
	const name = "d1sim-encryption-key.json"
	err := writeNew(k.Path(name), func() ([]byte, error) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		return json.Marshal(jose.JSONWebKey{Key: key})
	})
	if err != nil {
		return nil, fmt.Errorf("making the simulator's key: %w", err)
	}
	text, err := k.Read(name)
	if err != nil {
		return nil, err
	}
	var jwk jose.JSONWebKey
	if err := json.Unmarshal([]byte(text), &jwk); err != nil {
		return nil, fmt.Errorf("reading the simulator's key: %w", err)
	}
	key, ok := jwk.Key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("the simulator's key is not an EC private key")
	}
	return key, nil
}
