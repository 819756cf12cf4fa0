package wire

import (
	"encoding/binary"
	"fmt"
	"math"
)

// This file defines the binary frames of exec.v1 (§15): bytes as they are,
// where §6 has text.

// The first byte of a frame says what it carries.
const (
	frameStdin = iota
	frameStdout
	frameStderr
)

// MaxFrameData is how many bytes of output one frame carries at most.
const MaxFrameData = 256 << 10

// outputHeader is the kind and the offset.
const outputHeader = 1 + 8

// MaxOutputFrame is the size of the largest frame of output.
const MaxOutputFrame = outputHeader + MaxFrameData

// AppendOutputHeader appends to p what a frame of output starts with. The data
// follows it. Stream is Stdout or Stderr, and offset how many bytes of that
// stream came before.
func AppendOutputHeader(p []byte, stream string, offset int64) []byte {
	kind := byte(frameStdout)
	if stream == Stderr {
		kind = frameStderr
	}
	return binary.BigEndian.AppendUint64(append(p, kind), uint64(offset))
}

// DecodeOutput takes a frame of output apart. The data stands in the frame.
func DecodeOutput(frame []byte) (stream string, offset int64, data []byte, err error) {
	if len(frame) < outputHeader {
		return "", 0, nil, fmt.Errorf("a binary frame of %d bytes is no output: it has no offset", len(frame))
	}
	switch frame[0] {
	case frameStdout:
		stream = Stdout
	case frameStderr:
		stream = Stderr
	default:
		return "", 0, nil, fmt.Errorf("a binary frame of kind %d is no output", frame[0])
	}
	if len(frame) > MaxOutputFrame {
		return "", 0, nil, fmt.Errorf("a binary frame carries %d bytes of output: the most is %d", len(frame)-outputHeader, MaxFrameData)
	}
	position := binary.BigEndian.Uint64(frame[1:])
	data = frame[outputHeader:]
	if position > math.MaxInt64-MaxFrameData {
		return "", 0, nil, fmt.Errorf("a binary frame has the offset %d, which no stream reaches", position)
	}
	return stream, int64(position), data, nil
}

// AppendStdin appends to p a frame that carries data to the command's stdin.
func AppendStdin(p, data []byte) []byte {
	return append(append(p, frameStdin), data...)
}

// DecodeStdin takes such a frame apart. The data stands in the frame.
func DecodeStdin(frame []byte) (data []byte, err error) {
	if len(frame) == 0 {
		return nil, fmt.Errorf("a binary frame is empty: want a kind and data")
	}
	if frame[0] != frameStdin {
		return nil, fmt.Errorf("a binary frame of kind %d is no input: want kind %d", frame[0], frameStdin)
	}
	return frame[1:], nil
}
