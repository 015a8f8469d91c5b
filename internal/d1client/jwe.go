package d1client

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// maxJWE is the longest encryptedData assumed to be accepted by D1, in characters.
const maxJWE = 8192

// EncryptionKey is a public key of D1 for card data.
type EncryptionKey struct {
	// KeyID is the kid under which D1 knows the key. Required.
	KeyID string
	// Public is a key on P-256. Required.
	Public *ecdsa.PublicKey
	// NotAfter is the last moment at which the key may be used. Default: no end.
	NotAfter time.Time
}

func (k EncryptionKey) validAt(now time.Time) bool {
	return k.NotAfter.IsZero() || !now.After(k.NotAfter)
}

func (k EncryptionKey) outlasts(other EncryptionKey) bool {
	return !other.NotAfter.IsZero() && (k.NotAfter.IsZero() || k.NotAfter.After(other.NotAfter))
}

// Encrypter encrypts card data for D1 and checks what others have encrypted. It is
// safe for concurrent use.
type Encrypter struct{ keys map[string]encryptionKey }

type encryptionKey struct {
	EncryptionKey
	encrypter jose.Encrypter
}

// NewEncrypter takes all keys of D1 that may be in use, the retiring one included.
func NewEncrypter(keys ...EncryptionKey) (*Encrypter, error) {
	if len(keys) == 0 {
		return nil, errors.New("d1client: no encryption key")
	}
	e := &Encrypter{keys: make(map[string]encryptionKey, len(keys))}
	for i, k := range keys {
		if k.KeyID == "" || k.Public == nil || k.Public.Curve != elliptic.P256() {
			return nil, fmt.Errorf("d1client: encryption key %d needs a key id and a P-256 public key", i)
		}
		if _, ok := e.keys[k.KeyID]; ok {
			return nil, fmt.Errorf("d1client: encryption key %d has the key id of another", i)
		}
		encrypter, err := jose.NewEncrypter(jose.A256GCM,
			jose.Recipient{Algorithm: jose.ECDH_ES, Key: k.Public, KeyID: k.KeyID}, nil)
		if err != nil {
			return nil, fmt.Errorf("d1client: encryption key %d cannot be used", i)
		}
		e.keys[k.KeyID] = encryptionKey{k, encrypter}
	}
	return e, nil
}

// KeyIDs lists the kids of the keys that may be used at now, sorted.
func (e *Encrypter) KeyIDs(now time.Time) []string {
	ids := make([]string, 0, len(e.keys))
	for id, k := range e.keys {
		if k.validAt(now) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// Encrypt makes a compact JWE (ECDH-ES, A256GCM) with the key that is valid longest
// of those valid at now, so that a new key is used as soon as it is configured. The
// caller clears plaintext.
func (e *Encrypter) Encrypt(now time.Time, plaintext []byte) (string, error) {
	var best *encryptionKey
	for id := range e.keys {
		k := e.keys[id]
		if !k.validAt(now) {
			continue
		}
		// Two that end together: by key id, so that the choice does not waver.
		if best == nil || k.outlasts(best.EncryptionKey) ||
			!best.outlasts(k.EncryptionKey) && k.KeyID < best.KeyID {
			best = &k
		}
	}
	if best == nil {
		return "", errors.New("cannot be encrypted: every key of D1 that is configured here has expired")
	}
	sealed, err := best.encrypter.Encrypt(plaintext)
	if err != nil {
		return "", errors.New("cannot be encrypted")
	}
	compact, err := sealed.CompactSerialize()
	if err != nil {
		return "", errors.New("cannot be encrypted")
	}
	if len(compact) > maxJWE {
		return "", fmt.Errorf("is longer than %d characters when it is encrypted", maxJWE)
	}
	return compact, nil
}

// protectedHeader is what Check reads of a protected header. Members it does not name
// are D1's to judge.
type protectedHeader struct {
	Alg  string         `json:"alg"`
	Enc  string         `json:"enc"`
	Kid  string         `json:"kid"`
	Zip  jsontext.Value `json:"zip"`
	Crit jsontext.Value `json:"crit"`
	Epk  struct {
		Kty string         `json:"kty"`
		Crv string         `json:"crv"`
		X   string         `json:"x"`
		Y   string         `json:"y"`
		D   jsontext.Value `json:"d"`
	} `json:"epk"`
}

// Check tells whether D1 can be expected to decrypt compact at now, as far as that
// can be told without its private key: the form, the algorithms, the key and the
// ephemeral point (RFC 7516, RFC 7518 section 4.6). The error never quotes compact.
func (e *Encrypter) Check(now time.Time, compact string) error {
	if len(compact) > maxJWE {
		return fmt.Errorf("encrypted data is longer than %d characters", maxJWE)
	}
	var parts [5]string
	var sizes [5]int // in bytes, decoded
	rest, more := compact, true
	for i := range parts {
		if !more {
			return errNotFiveParts
		}
		parts[i], rest, more = strings.Cut(rest, ".")
	}
	if more {
		return errNotFiveParts
	}
	for i, part := range parts {
		size, ok := base64Size(part)
		if !ok {
			return fmt.Errorf("part %d of the encrypted data is not base64url", i+1)
		}
		sizes[i] = size
	}
	// Strict about names that come twice: D1 might read the other one.
	var h protectedHeader
	raw, err := base64.RawURLEncoding.DecodeString(parts[0])
	if err != nil || json.Unmarshal(raw, &h) != nil {
		return errors.New("the header of the encrypted data is not a JSON object of a JWE")
	}
	key, known := e.keys[h.Kid]
	switch {
	case h.Alg != string(jose.ECDH_ES):
		return errors.New("the encrypted data's alg is not ECDH-ES")
	case h.Enc != string(jose.A256GCM):
		return errors.New("the encrypted data's enc is not A256GCM")
	case h.Crit != nil || h.Zip != nil:
		return errors.New("the encrypted data's header has crit or zip")
	case !known:
		return errors.New("the encrypted data's kid is not a known key")
	case !key.validAt(now):
		return errors.New("the encrypted data's key has expired")
	case h.Epk.D != nil:
		return errors.New("the encrypted data's epk is a private key, which must not leave the sender")
	case h.Epk.Kty != "EC" || h.Epk.Crv != "P-256" || !validPoint(h.Epk.X, h.Epk.Y):
		return errors.New("the encrypted data's epk is not a point on P-256")
	case sizes[1] != 0:
		return errors.New("the encrypted data has an encrypted key, which ECDH-ES leaves empty")
	case sizes[2] != 12:
		return errors.New("the encrypted data's initialization vector is not of 96 bits")
	case sizes[3] == 0:
		return errors.New("the encrypted data has no ciphertext")
	case sizes[4] != 16:
		return errors.New("the encrypted data's authentication tag is not of 128 bits")
	}
	return nil
}

var errNotFiveParts = errors.New("encrypted data is not a compact JWE of five parts")

// base64Size is how many bytes part stands for, if it is base64url as RFC 7515
// writes it: no padding, no line breaks, no bits left over.
func base64Size(part string) (int, bool) {
	for i := range len(part) {
		if base64Value[part[i]] < 0 {
			return 0, false
		}
	}
	ok := true
	switch len(part) % 4 {
	case 1:
		ok = false
	case 2:
		ok = base64Value[part[len(part)-1]]&0x0f == 0
	case 3:
		ok = base64Value[part[len(part)-1]]&0x03 == 0
	}
	return len(part) * 6 / 8, ok
}

// base64Value is the value of each character of base64url, -1 for all others.
var base64Value = func() (values [256]int8) {
	for i := range values {
		values[i] = -1
	}
	for i, c := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_" {
		values[c] = int8(i)
	}
	return values
}()

func validPoint(x, y string) bool {
	var point [65]byte
	point[0] = 4 // not compressed
	for i, coordinate := range []string{x, y} {
		if size, ok := base64Size(coordinate); !ok || size != 32 {
			return false
		}
		if _, err := base64.RawURLEncoding.Decode(point[1+32*i:], []byte(coordinate)); err != nil {
			return false
		}
	}
	_, err := ecdh.P256().NewPublicKey(point[:])
	return err == nil
}

// ParsePublicJWK reads a public key of D1 from its JWK. NotAfter is the caller's to
// set. The error never quotes raw, in case it is a private key by mistake.
func ParsePublicJWK(raw []byte) (EncryptionKey, error) {
	var jwk jose.JSONWebKey
	if jwk.UnmarshalJSON(raw) != nil {
		return EncryptionKey{}, errors.New("d1client: not a JWK")
	}
	public, ok := jwk.Key.(*ecdsa.PublicKey)
	switch {
	case !ok || public.Curve != elliptic.P256():
		return EncryptionKey{}, errors.New("d1client: the JWK is not a public key on P-256")
	case jwk.KeyID == "":
		return EncryptionKey{}, errors.New("d1client: the JWK has no kid")
	case jwk.Use != "" && jwk.Use != "enc":
		return EncryptionKey{}, errors.New("d1client: the JWK is not for encryption")
	case jwk.Algorithm != "" && jwk.Algorithm != string(jose.ECDH_ES):
		return EncryptionKey{}, errors.New("d1client: the JWK is not for ECDH-ES")
	}
	return EncryptionKey{KeyID: jwk.KeyID, Public: public}, nil
}
