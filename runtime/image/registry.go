//go:build linux

package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	imagename "github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/sbx-star/sbx-star/runtime"
)

// This file defines how images come from registries.

// MirrorVar is the environment variable by which this program's user names mirrors.
const MirrorVar = "SBX_STAR_REGISTRY_MIRROR"

// How long a registry has, to answer and to send the next byte, and how often a
// download that breaks off is taken up again without a single byte more.
const (
	answerTimeout = time.Minute
	stallTimeout  = time.Minute
	attempts      = 5
	firstPause    = 100 * time.Millisecond
)

// ParseMirrors reads where to go instead of registries: HOST=MIRROR entries with
// commas between them, where a MIRROR may begin with http:// if it has no TLS, and
// end in a path that all its repositories are below. An entry without HOST= is for
// docker.io.
func ParseMirrors(text string) (map[string]string, error) {
	mirrors := map[string]string{}
	for entry := range strings.SplitSeq(text, ",") {
		entry = strings.TrimSpace(entry)
		if entry == "" {
			continue
		}
		host, mirror, ok := strings.Cut(entry, "=")
		if !ok {
			host, mirror = "docker.io", entry
		}
		registry, err := imagename.NewRegistry(host)
		if err == nil {
			_, err = mirrored(mirror, "library/x:latest")
		}
		if err != nil {
			return nil, fmt.Errorf("%s has %q: want HOST=MIRROR, such as docker.io=registry.example:5000/hub", MirrorVar, entry)
		}
		mirrors[registry.RegistryStr()] = mirror
	}
	return mirrors, nil
}

// mirrored is the name of what is called rest at a mirror.
func mirrored(mirror, rest string) (imagename.Reference, error) {
	var options []imagename.Option
	if plain, ok := strings.CutPrefix(mirror, "http://"); ok {
		mirror, options = plain, append(options, imagename.Insecure)
	}
	mirror = strings.TrimSuffix(strings.TrimPrefix(mirror, "https://"), "/")
	ref, err := imagename.ParseReference(mirror+"/"+rest, options...)
	host, _, _ := strings.Cut(mirror, "/")
	if err == nil && ref.Context().RegistryStr() != host {
		err = errors.New("it is not the name of a host")
	}
	return ref, err
}

// where returns the name by which an image is fetched, and the login for that.
func (s *Store) where(request runtime.ImageRequest) (imagename.Reference, authn.Authenticator, error) {
	ref, err := imagename.ParseReference(request.Ref)
	if err != nil {
		return nil, nil, &runtime.ImageError{What: "that is not the name of an image", Err: err, Hint: "want one such as python:3.12, registry.example/team/app:1 or app@sha256:…, or host"}
	}
	if mirror := s.mirrors[ref.Context().RegistryStr()]; mirror != "" {
		rest := ref.Context().RepositoryStr() + ":" + ref.Identifier()
		if _, pinned := ref.(imagename.Digest); pinned {
			rest = ref.Context().RepositoryStr() + "@" + ref.Identifier()
		}
		if ref, err = mirrored(mirror, rest); err != nil {
			return nil, nil, err
		}
	}
	host := ref.Context().RegistryStr()
	for _, l := range request.Logins {
		if registry, err := imagename.NewRegistry(l.Host); err != nil || registry.RegistryStr() != host {
			continue
		}
		if l.Plain {
			if ref, err = imagename.ParseReference(ref.Name(), imagename.Insecure); err != nil {
				return nil, nil, err
			}
		}
		return ref, authn.FromConfig(authn.AuthConfig{Username: l.Username, Password: l.Password}), nil
	}
	if !request.UserAuth {
		return ref, authn.Anonymous, nil
	}
	auth, err := authn.DefaultKeychain.Resolve(ref.Context())
	if err != nil {
		return nil, nil, &runtime.ImageError{What: "the logins of this machine's Docker configuration can't be read", Err: err}
	}
	return ref, auth, nil
}

func (s *Store) registrySource(ctx context.Context, request runtime.ImageRequest) (*source, error) {
	ref, auth, err := s.where(request)
	if err != nil {
		return nil, err
	}
	base := http.DefaultTransport.(*http.Transport).Clone()
	base.ResponseHeaderTimeout = answerTimeout
	src, err := s.ask(ctx, ref, auth, base)
	if err != nil {
		base.CloseIdleConnections()
		return nil, explain(ref, err)
	}
	src.close = base.CloseIdleConnections
	return src, nil
}

// ask finds an image in its registry.
func (s *Store) ask(ctx context.Context, ref imagename.Reference, auth authn.Authenticator, base http.RoundTripper) (*source, error) {
	repository := ref.Context()
	// The transport asks for tokens by this context as long as it is used.
	rt, err := transport.NewWithContext(ctx, repository.Registry, auth, base, []string{repository.Scope(transport.PullScope)})
	if err != nil {
		return nil, err
	}
	asking, cancel := context.WithTimeoutCause(ctx, answerTimeout, errors.New("it takes too long to say what the image is"))
	defer cancel()
	src, descriptors, err := describeRemote(asking, ref, rt)
	if err != nil {
		if asking.Err() != nil {
			err = context.Cause(asking)
		}
		return nil, err
	}
	for i, d := range descriptors {
		l := &src.layers[i]
		l.blob = d.Digest.Hex + "-" + s.options.Owner
		l.open = func(ctx context.Context, p *progress) (io.ReadCloser, error) {
			get := &download{
				client: &http.Client{Transport: rt}, path: s.path("blobs", l.blob), size: d.Size, digest: d.Digest.Hex, progress: p,
				url: fmt.Sprintf("%s://%s/v2/%s/blobs/%s", repository.Scheme(), repository.RegistryStr(), repository.RepositoryStr(), d.Digest),
			}
			f, err := get.whole(ctx)
			if err != nil {
				return nil, explain(ref, err)
			}
			return f, nil
		}
	}
	return src, nil
}

func describeRemote(ctx context.Context, ref imagename.Reference, rt http.RoundTripper) (*source, []v1.Descriptor, error) {
	described, err := remote.Get(ref, remote.WithContext(ctx), remote.WithTransport(rt),
		remote.WithRetryBackoff(remote.Backoff{Duration: firstPause, Factor: 3, Steps: 3}))
	if err != nil {
		return nil, nil, err
	}
	var img v1.Image
	if described.MediaType.IsIndex() {
		index, indexErr := described.ImageIndex()
		if err = indexErr; err == nil {
			img, err = pick(index, false)
		}
	} else {
		img, err = described.Image()
	}
	if err != nil {
		return nil, nil, err
	}
	return describeImage(img)
}

// explain says of an error of a registry what it means.
func explain(ref imagename.Reference, err error) error {
	if _, ok := errors.AsType[*runtime.ImageError](err); ok {
		return err
	}
	host := ref.Context().RegistryStr()
	if said, ok := errors.AsType[*transport.Error](err); ok {
		switch {
		case said.StatusCode == http.StatusUnauthorized || said.StatusCode == http.StatusForbidden:
			return &runtime.ImageError{
				What: fmt.Sprintf("the registry %s does not let it be read (%d)", host, said.StatusCode),
				Hint: fmt.Sprintf("see that the name is right, and log in by docker login %s or make a registry record on the server", host),
			}
		case said.StatusCode == http.StatusNotFound:
			return &runtime.ImageError{What: fmt.Sprintf("the registry %s has no %s:%s", host, ref.Context().RepositoryStr(), ref.Identifier()), Hint: "see that the name is right"}
		case said.StatusCode == http.StatusTooManyRequests:
			return &runtime.ImageError{What: fmt.Sprintf("the registry %s has had too many requests from here", host), Hint: "try again later, or log in"}
		}
		return &runtime.ImageError{What: fmt.Sprintf("the registry %s answers %d", host, said.StatusCode), Err: firstWords(said)}
	}
	if _, ok := errors.AsType[net.Error](err); ok && !errors.Is(err, context.Canceled) {
		return &runtime.ImageError{
			What: fmt.Sprintf("the registry %s can't be reached", host), Err: err,
			Hint: fmt.Sprintf("see that this machine is online, name a mirror by %s, or use the image %q, which needs no network", MirrorVar, runtime.HostImage),
		}
	}
	return err
}

// firstWords is what a registry says, on one line.
func firstWords(e *transport.Error) error {
	if len(e.Errors) == 0 {
		return nil
	}
	return errors.New(strings.Join(strings.Fields(fmt.Sprintf("%.200s", e.Errors[0].Message)), " "))
}

// download is of one layer into one file, which it goes on with if it is there.
type download struct {
	client   *http.Client
	url      string
	path     string
	size     int64
	digest   string // in hex
	progress *progress
}

var (
	errStalled = errors.New("the registry has stopped sending")
	errContent = errors.New("what the registry sends has another digest")
)

// whole returns the file once it has every byte, open at its start.
func (d *download) whole(ctx context.Context) (*os.File, error) {
	f, err := os.OpenFile(d.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = d.fill(ctx, f)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (d *download) fill(ctx context.Context, f *os.File) error {
	sum := sha256.New()
	have, err := io.Copy(sum, f) // of an earlier try
	if err != nil {
		return err
	}
	d.progress.add(min(have, d.size))
	for failures := 0; ; {
		before := have
		if have < d.size {
			have, err = d.more(ctx, f, sum, have)
		}
		if have > d.size || have == d.size && hex.EncodeToString(sum.Sum(nil)) != d.digest {
			have, err = 0, errors.Join(errContent, d.restart(f, sum, min(have, d.size)))
			before = d.size // no step ahead
		} else if have == d.size {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if failures++; have > before {
			failures = 1
		}
		if failures >= attempts || !again(err) {
			return err
		}
		select {
		case <-time.After(firstPause << failures):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// again reports whether an error may be another one next time.
func again(err error) bool {
	if said, ok := errors.AsType[*transport.Error](err); ok {
		return said.StatusCode >= 500 || said.StatusCode == http.StatusRequestTimeout || said.StatusCode == http.StatusTooManyRequests
	}
	_, disk := errors.AsType[*os.PathError](err)
	return !disk
}

func (d *download) restart(f *os.File, sum hash.Hash, had int64) error {
	d.progress.add(-had)
	sum.Reset()
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.Seek(0, io.SeekStart)
	return err
}

// more asks for what is missing after the first have bytes, and returns how many
// there are when the answer ends.
func (d *download) more(ctx context.Context, f *os.File, sum hash.Hash, have int64) (int64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ask, err := http.NewRequestWithContext(ctx, http.MethodGet, d.url, nil)
	if err != nil {
		return have, err
	}
	if have > 0 {
		ask.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", have, d.size-1))
	}
	answer, err := d.client.Do(ask)
	if err != nil {
		return have, err
	}
	defer answer.Body.Close()
	if err := transport.CheckError(answer, http.StatusOK, http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable); err != nil {
		return have, err
	}
	goesOn := answer.StatusCode == http.StatusPartialContent && strings.HasPrefix(answer.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", have))
	if have > 0 && !goesOn {
		if err := d.restart(f, sum, have); err != nil {
			return have, err
		}
		have = 0
	}
	if answer.StatusCode != http.StatusOK && !goesOn {
		return have, errors.New("the registry sends another part than it was asked for")
	}
	stalled := time.AfterFunc(stallTimeout, func() { cancel(errStalled) })
	defer stalled.Stop()
	buffer := make([]byte, 128<<10)
	for {
		n, err := answer.Body.Read(buffer)
		n = int(min(int64(n), d.size+1-have)) // one more is too many
		if n > 0 {
			stalled.Reset(stallTimeout)
			if _, err := f.Write(buffer[:n]); err != nil {
				return have, err
			}
			sum.Write(buffer[:n])
			have += int64(n)
			d.progress.add(int64(n))
		}
		switch {
		case have > d.size || err == io.EOF && have == d.size:
			return have, nil
		case err == io.EOF:
			return have, io.ErrUnexpectedEOF
		case err != nil && ctx.Err() != nil:
			return have, context.Cause(ctx)
		case err != nil:
			return have, err
		}
	}
}
