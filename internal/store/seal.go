package store

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"strings"

	"github.com/google/uuid"
	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"
)

// Sealer encrypts what may not rest in clear. Old values stay readable while
// their key is in the keyset; new ones use the primary key.
type Sealer struct{ aead tink.AEAD }

// NewSealer reads a Tink AEAD keyset in its JSON form. Errors never repeat it.
func NewSealer(keysetJSON []byte) (*Sealer, error) {
	handle, err := insecurecleartextkeyset.Read(keyset.NewJSONReader(bytes.NewReader(keysetJSON)))
	if err != nil {
		return nil, errors.New("the sealing keyset is not a Tink keyset in JSON")
	}
	primitive, err := aead.New(handle)
	if err != nil {
		return nil, errors.New("the sealing keyset is not a Tink AEAD keyset")
	}
	return &Sealer{primitive}, nil
}

// NewSealingKeyset makes a keyset with one AES-256-GCM key.
func NewSealingKeyset() ([]byte, error) {
	handle, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
	if err != nil {
		return nil, fmt.Errorf("making a sealing key: %w", err)
	}
	var b bytes.Buffer
	if err := insecurecleartextkeyset.Write(handle, keyset.NewJSONWriter(&b)); err != nil {
		return nil, fmt.Errorf("writing the sealing keyset: %w", err)
	}
	return b.Bytes(), nil
}

// place binds a sealed value to the one column and row that it belongs to.
func place(column, issuer string, row string) []byte {
	return []byte(strings.Join([]string{column, issuer, row}, "|"))
}

func (s *Sealer) seal(plain []byte, column, issuer, row string) ([]byte, error) {
	sealed, err := s.aead.Encrypt(plain, place(column, issuer, row))
	if err != nil {
		return nil, fmt.Errorf("sealing %s: %w", column, err)
	}
	return sealed, nil
}

func (s *Sealer) open(sealed []byte, column, issuer, row string) ([]byte, error) {
	plain, err := s.aead.Decrypt(sealed, place(column, issuer, row))
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", column, err)
	}
	return plain, nil
}

const (
	columnProduction    = "order_payload.production"
	columnEncryptedData = "order_payload.encrypted_data"
	columnNotification  = "notifications.body"
	columnNote          = "order_notes.body"
	columnChangeAddress = "order_changes.address"
)

// sealedPayload is an order's personal data as it rests.
type sealedPayload struct{ production, encryptedData []byte }

func (s *Sealer) sealPayload(issuer string, id uuid.UUID, production []byte, encryptedData string) (sealedPayload, error) {
	p, err := s.seal(production, columnProduction, issuer, id.String())
	if err != nil {
		return sealedPayload{}, err
	}
	e, err := s.seal([]byte(encryptedData), columnEncryptedData, issuer, id.String())
	if err != nil {
		return sealedPayload{}, err
	}
	return sealedPayload{p, e}, nil
}

// HashKeys are the keys of the hashes by which content is recognised again.
type HashKeys struct{ Current []byte }

func (k HashKeys) sum(content []byte) []byte { return k.sums()(content) }

// sums returns sum for many contents, one after the other.
func (k HashKeys) sums() func(content []byte) []byte {
	mac := hmac.New(sha256.New, k.Current)
	return func(content []byte) []byte {
		mac.Reset()
		mac.Write(content)
		return mac.Sum(nil)
	}
}

// comparisonVersion names the way in which new orders are hashed for idempotency.
// Orders keep the version they were stored with, and are compared by it.
//
//	1: the canonical request
//	2: set apart from other content by a prefix, since the key serves for
//	   notifications and batches too
const comparisonVersion = 2

// contentPrefix cannot begin a canonical request, which is a JSON object.
const contentPrefix = "order\x00"

// content hashes a canonical request; nil when this release does not know version.
func (k HashKeys) content(version int16, canonical []byte) []byte {
	switch version {
	case 1:
		return k.sum(canonical)
	case 2:
		return k.sum(append([]byte(contentPrefix), canonical...))
	}
	return nil
}

// matches tells whether a canonical request is the one that was hashed.
func (k HashKeys) matches(version int16, hash, canonical []byte) (bool, error) {
	sum := k.content(version, canonical)
	if sum == nil {
		return false, ErrNewerRelease
	}
	return hmac.Equal(hash, sum), nil
}

// change hashes the canonical request of a change.
func (k HashKeys) change(canonical []byte) []byte {
	return k.sum(append([]byte("change\x00"), canonical...))
}

// runningDigest is a keyed hash of rows, of which any number may follow.
type runningDigest struct{ mac hash.Hash }

func newRunningDigest(k HashKeys) *runningDigest {
	mac := hmac.New(sha256.New, k.Current)
	mac.Write([]byte("batch\x00"))
	return &runningDigest{mac}
}

// add takes the next row and where it stands; its length keeps rows apart.
func (d *runningDigest) add(line int64, row []byte) {
	var head [16]byte
	binary.BigEndian.PutUint64(head[:8], uint64(line)) //nolint:gosec // lines count from 1
	binary.BigEndian.PutUint64(head[8:], uint64(len(row)))
	d.mac.Write(head[:])
	d.mac.Write(row)
}

// sum is the digest of the rows so far.
func (d *runningDigest) sum() []byte { return d.mac.Sum(nil) }

func (d *runningDigest) is(sum []byte) bool { return hmac.Equal(d.sum(), sum) }
