; The part of XLA's FFI, version 0.1, that a custom call needs.
;
; The structs are those of xla/ffi/api/c_api.h up to the last field that is used here. A later minor
; version may only add fields at their ends, and XLA accepts handlers of earlier minor versions.

%Version = type { i64, ptr, i32, i32 }
%Metadata = type { i64, %Version, i32 }
%MetadataExtension = type { i64, i32, ptr, ptr }
%Api = type { i64, ptr, %Version, ptr, ptr }
%Error = type { i64, ptr, ptr, i32 }
%Buffer = type { i64, ptr, i32, ptr }
%Buffers = type { i64, ptr, i64, ptr, ptr }
%CallFrame = type { i64, ptr, ptr, ptr, i32, %Buffers, %Buffers }

; Before the first call, XLA asks a handler for its FFI version through an extension of type 1.
; Answers if this call asks for the version, and returns whether it does.
define private i1 @ffi_answer_version(ptr %frame) {
  %extension_at = getelementptr %CallFrame, ptr %frame, i32 0, i32 1
  %extension = load ptr, ptr %extension_at
  %extended = icmp ne ptr %extension, null
  br i1 %extended, label %which, label %no

which:
  %type_at = getelementptr %MetadataExtension, ptr %extension, i32 0, i32 1
  %type = load i32, ptr %type_at
  %asked = icmp eq i32 %type, 1
  br i1 %asked, label %answer, label %no

answer:
  %metadata_at = getelementptr %MetadataExtension, ptr %extension, i32 0, i32 3
  %metadata = load ptr, ptr %metadata_at
  %major_at = getelementptr %Metadata, ptr %metadata, i32 0, i32 1, i32 2
  store i32 0, ptr %major_at
  %minor_at = getelementptr %Metadata, ptr %metadata, i32 0, i32 1, i32 3
  store i32 1, ptr %minor_at
  ret i1 true

no:
  ret i1 false
}

; The data of an operand.
define private ptr @ffi_operand(ptr %frame, i64 %number) {
  %operands_at = getelementptr %CallFrame, ptr %frame, i32 0, i32 5, i32 4
  %operands = load ptr, ptr %operands_at
  %operand_at = getelementptr ptr, ptr %operands, i64 %number
  %operand = load ptr, ptr %operand_at
  %data_at = getelementptr %Buffer, ptr %operand, i32 0, i32 3
  %data = load ptr, ptr %data_at
  ret ptr %data
}

; The data of the only result.
define private ptr @ffi_result(ptr %frame) {
  %results_at = getelementptr %CallFrame, ptr %frame, i32 0, i32 6, i32 4
  %results = load ptr, ptr %results_at
  %result = load ptr, ptr %results
  %data_at = getelementptr %Buffer, ptr %result, i32 0, i32 3
  %data = load ptr, ptr %data_at
  ret ptr %data
}

; Makes the error that a handler returns: XLA_FFI_Error_Code_INTERNAL with a message.
define private ptr @ffi_error(ptr %frame, ptr %message) {
  %error = alloca %Error
  store %Error { i64 32, ptr null, ptr null, i32 13 }, ptr %error
  %message_at = getelementptr %Error, ptr %error, i32 0, i32 2
  store ptr %message, ptr %message_at
  %api_at = getelementptr %CallFrame, ptr %frame, i32 0, i32 2
  %api = load ptr, ptr %api_at
  %create_at = getelementptr %Api, ptr %api, i32 0, i32 4
  %create = load ptr, ptr %create_at
  %made = call ptr %create(ptr %error)
  ret ptr %made
}
