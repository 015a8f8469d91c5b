package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/uuid"
)

// loadOrMakeKey reads the private key for encryptedData, or makes one, so that a restart does not make every stored
// encryptedData unreadable.
func loadOrMakeKey(path string) (*ecdsa.PrivateKey, string, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return makeKey(path)
	}
	if err != nil {
		return nil, "", err
	}
	var jwk jose.JSONWebKey
	if err := json.Unmarshal(text, &jwk); err != nil {
		return nil, "", fmt.Errorf("%s: is not a JWK", path)
	}
	key, ok := jwk.Key.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() || jwk.KeyID == "" {
		return nil, "", fmt.Errorf("%s: must be a private P-256 JWK with a kid", path)
	}
	return key, jwk.KeyID, nil
}

// makeKey writes a new key: the private half for the owner only, the public half for all.
func makeKey(path string) (*ecdsa.PrivateKey, string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, "", err
	}
	jwk := jose.JSONWebKey{Key: key, KeyID: "d1sim-" + uuid.NewString()[:8], Algorithm: string(jose.ECDH_ES), Use: "enc"}
	if err := writeJWK(path+".pub.json", jwk.Public(), 0o644); err != nil {
		return nil, "", err
	}
	if err := writeJWK(path, jwk, 0o600); err != nil {
		return nil, "", err
	}
	return key, jwk.KeyID, nil
}

func writeJWK(path string, jwk jose.JSONWebKey, mode os.FileMode) error {
	text, err := json.MarshalIndent(jwk, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), mode)
}
