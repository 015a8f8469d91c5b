package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	randv2 "math/rand/v2"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"cardorder/internal/d1client"
)

const issuerID = "ISSUER0001"

// Ids of a caller have this form: 32 hexadecimal digits, in no order, as cards
// and requests of a bank come in none.
const idLength = 32

// Placeholders of an order's ids while it is a template.
const (
	markCard     = "cccccccccccccccccccccccccccccccc"
	markRequest  = "dddddddddddddddddddddddddddddddd"
	markConsumer = "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee"
	markKey      = "ffffffffffffffffffffffffffffffff"
	markJWE      = "JWE"
)

// orderText is an order as core banking sends it: a card by post, with what is
// printed on it and on its letter, within the example's programs.
const orderText = `{"cardId":"` + markCard + `","issuerRequestId":"` + markRequest + `","consumerId":"` + markConsumer + `",` +
	`"cardProductId":"gold-debit","distributionChannel":"THALES",` +
	`"services":{"issuance":"CREATION","delivery":"POST","cardCarrier":"WELCOME","packaging":"GIFT_BOX"},` +
	`"paymentApplication":{"config":"visa-debit","odaKeyIndex":"01","derivationKeyIndex":"02"},` +
	`"cardDesign":{"cardImage":"alps.png","customLines":["ADA EXAMPLE","MEMBER SINCE 2019"]},` +
	`"cardCarrierConfig":{"language":"fr","customLines":["Chere Madame","Votre nouvelle carte"]},` +
	`"packagingConfig":{"inserts":["LEAFLET"]},` +
	`"shipment":{"type":"INDIVIDUAL","deliveryAddress":{"firstName":"ADA","lastName":"EXAMPLE","line1":"1 RUE DE LA PAIX",` +
	`"line2":"BATIMENT C","zipCode":"75002","city":"PARIS","countryCode":"FR","mobilePhoneNumber":"+33612345678"}},` +
	`"encryptedData":"` + markJWE + `","metadata":{"branch":"paris-2","campaign":"spring"}}`

// cardData is what the caller encrypts. The number is the networks' published one.
const cardData = `{"pan":"4111111111111111","exp":"3012","name":"ADA EXAMPLE","cvv2":"123","track1":"","pin":""}`

const poolSize = 256 // of JWEs made beforehand

// encryption is D1's key and card data that is encrypted with it.
type encryption struct{ jwes []string }

// newEncryption makes a key, writes its public half to file, and encrypts.
func newEncryption(file string) (*encryption, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	jwk, err := json.Marshal(jose.JSONWebKey{Key: &key.PublicKey, KeyID: "bench", Use: "enc"})
	if err != nil {
		return nil, fmt.Errorf("writing a key: %w", err)
	}
	if err := os.WriteFile(file, jwk, 0o600); err != nil {
		return nil, err
	}
	e, err := d1client.NewEncrypter(d1client.EncryptionKey{KeyID: "bench", Public: &key.PublicKey})
	if err != nil {
		return nil, err
	}
	pool := make([]string, poolSize)
	for i := range pool {
		if pool[i], err = e.Encrypt(time.Now(), []byte(cardData)); err != nil {
			return nil, err
		}
		if len(pool[i]) != len(pool[0]) {
			return nil, fmt.Errorf("JWEs of %d and %d characters", len(pool[i]), len(pool[0]))
		}
	}
	return &encryption{pool}, nil
}

// orderIDs are the ids of one order, made by its caller.
type orderIDs struct{ card, request, consumer, key [idLength]byte }

func newOrderIDs() (ids orderIDs) {
	for _, id := range []*[idLength]byte{&ids.card, &ids.request, &ids.consumer, &ids.key} {
		var b [idLength / 2]byte
		for i := 0; i < len(b); i += 8 {
			n := randv2.Uint64()
			for j := range 8 {
				b[i+j] = byte(n >> (8 * j))
			}
		}
		hex.Encode(id[:], b[:])
	}
	return ids
}

// form is a text of bytes in which only the ids and the JWE change.
type form struct {
	text                         []byte
	card, request, consumer, key int // offsets; -1 when there is none
	jwe                          int
	pool                         *encryption
}

func newForm(text string, e *encryption) *form {
	text = strings.Replace(text, markJWE, e.jwes[0], 1)
	return &form{
		text: []byte(text), pool: e,
		card: strings.Index(text, markCard), request: strings.Index(text, markRequest),
		consumer: strings.Index(text, markConsumer), key: strings.Index(text, markKey),
		jwe: strings.Index(text, e.jwes[0]),
	}
}

// clone is for another goroutine.
func (f *form) clone() *form {
	c := *f
	c.text = bytes.Clone(f.text)
	return &c
}

// fill writes new ids and another JWE into the text.
func (f *form) fill() orderIDs {
	ids := newOrderIDs()
	copy(f.text[f.card:], ids.card[:])
	copy(f.text[f.request:], ids.request[:])
	copy(f.text[f.consumer:], ids.consumer[:])
	if f.key >= 0 {
		copy(f.text[f.key:], ids.key[:])
	}
	copy(f.text[f.jwe:], f.pool.jwes[randv2.IntN(poolSize)])
	return ids
}

// httpForm is the whole request that places an order.
func httpForm(address, token string, idempotencyKey bool, e *encryption) *form {
	length := len(orderText) - len(markJWE) + len(e.jwes[0])
	head := "POST /v1/issuers/" + issuerID + "/orders HTTP/1.1\r\nHost: " + address +
		"\r\nUser-Agent: core-banking\r\nAccept: application/json\r\nAuthorization: Bearer " + token +
		"\r\nContent-Type: application/json\r\nContent-Length: " + strconv.Itoa(length) + "\r\n"
	if idempotencyKey {
		head += "Idempotency-Key: " + markKey + "\r\n"
	}
	return newForm(head+"\r\n"+orderText, e)
}

// lineForm is one line of a batch.
func lineForm(e *encryption) *form { return newForm(orderText+"\n", e) }
